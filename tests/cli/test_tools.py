"""Chat models on the command line, and ``--tools FILE``."""

import json
import sys
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

import apr_agents.backends
from apr_agents.errors import ModelNotReady
from apr_agents.trace.trajectory import Trajectory

CALCULATOR = Path(__file__).parents[2] / "tools" / "calculator.py"

DOUBLE = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

@dataclass
class Unused:
    name: ClassVar[str]

def double(number: int) -> str:
    """Twice a number."""
    return str(2 * number)

tools = [double]
'''


class CallsItsTool(BaseChatModel):
    """Calls one tool, once, and repeats what it returned."""

    name_of_tool: str
    args: dict[str, object]

    @property
    def _llm_type(self):
        return "calls-its-tool"

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **options):
        if isinstance(messages[-1], ToolMessage):
            message = AIMessage(messages[-1].text)
        else:
            call = {"name": self.name_of_tool, "args": self.args, "id": "call"}
            message = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


class Unreachable(CallsItsTool):
    def _generate(self, messages, stop=None, run_manager=None, **options):
        raise ConnectionError("no\nroute to host.")


@pytest.fixture
def chats(monkeypatch):
    """Let every model string lead to a chat model that makes this call."""

    def put(name, cls=CallsItsTool, **args):
        chat = cls(name_of_tool=name, args=args)
        monkeypatch.setattr(apr_agents.backends, "_load", lambda model: chat)

    return put


def test_the_model_uses_the_tools_of_the_files(run, chats, tmp_path):
    file = tmp_path / "double"  # any name will do
    file.write_text(DOUBLE)
    chats("double", number=21)
    result = run("solve", "q", "--model", "a:b", "--tools", CALCULATOR, "--tools", file)
    assert (result.exit_code, result.stdout) == (0, "42\n")
    chats("calculate", expression="12*7")
    data = json.loads(run("solve", "q", "--json", "--tools", CALCULATOR, "--tools", file).stdout)
    assert data["answer"] == "84"
    assert Trajectory.model_validate(data["trajectory"]).protocol == "tool_calls"


def test_eval_takes_tools_too(run, chats, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "12*7", "answer": "84"}\n')
    chats("calculate", expression="12*7")
    result = run("eval", "--file", problems, "--model", "a:b", "--tools", CALCULATOR, "--json")
    assert (result.exit_code, json.loads(result.stdout)["accuracy"]) == (0, 1.0)


def test_a_provider_that_fails_is_one_line_and_exit_code_1(run, chats):
    chats("double", Unreachable)
    result = run("solve", "q", "--model", "a:b", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: The model backend failed: ConnectionError: no route to host.\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no such file"),
        ("", "it has no list named 'tools'"),
        ("tools = 7", "it has no list named 'tools'"),
        ("tools = [7]", "its 'tools' holds 7, which is no tool"),
        ("tools = ['" + "x" * 999 + "']", "which is no tool"),
        ("tools = [lambda: 1]", "<lambda>: ValueError: Function must have a docstring"),
        ("tools = [", "SyntaxError: '[' was never closed"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit", "SystemExit"),
        ("raise ValueError('two\\nlines.')", "ValueError: two lines."),
        (b"\xff\x00", "SyntaxError: "),
        (DOUBLE + "tools *= 2", "there is another tool called 'double'"),
    ],
)
def test_a_file_that_has_no_tools_is_one_line_and_exit_code_2(run, chats, tmp_path, text, why):
    chats("double", number=21)
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run("solve", "q", "--model", "a:b", "--tools", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: Cannot use the file {file}: ")
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 400


def test_a_folder_is_no_file_of_tools(run, chats, tmp_path):
    chats("double", number=21)
    result = run("solve", "q", "--model", "a:b", "--tools", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"Error: Cannot use the file {tmp_path}: it is a directory.\n"


@pytest.mark.parametrize("command", [["solve", "q"], ["eval", "--task", "arithmetic"]])
def test_a_model_that_continues_text_has_no_tools(run, says, command):
    says()
    result = run(*command, "--tools", CALCULATOR)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: --tools is '{CALCULATOR}', but must be left out: "
        "'bundled' continues text, only chat models call tools.\n"
    )


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            ImportError("It requires the langchain-acme package. Please install it."),
            "Cannot set up the model 'acme:large': "
            "It requires the langchain-acme package. Please install it.",
        ),
        (RuntimeError("no key\nsecond line"), "Cannot set up the model 'acme:large': no key."),
        (RuntimeError, "Cannot set up the model 'acme:large': RuntimeError."),
        (ValueError("Unable to infer model provider for model='acme:large'"), "no provider is"),
    ],
)
def test_a_chat_model_that_cannot_be_set_up_is_one_line(run, monkeypatch, raised, told):
    def refuse(model):
        raise raised

    monkeypatch.setattr("langchain.chat_models.init_chat_model", refuse)
    result = run("solve", "q", "--model", "acme:large")
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_key_says_which(monkeypatch):
    pytest.importorskip("langchain_google_genai")
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ModelNotReady, match=r"GOOGLE_API_KEY/GEMINI_API_KEY environment variable\.$"
    ):
        apr_agents.backends.resolve("google_genai:gemini-2.5-pro")


def test_a_missing_provider_package_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    with pytest.raises(ModelNotReady, match="pip install langchain-openai"):
        apr_agents.backends.resolve("openai:gpt-5")
