"""Problems through an agent, and the report."""

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import PromptTooLong
from apr_agents.evaluation import AT_ONCE, evaluate
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.base import Problem

OUTLINES = "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>"


def script(request: Request) -> Reply | str:
    question = request.prompt.split("\n")[0]
    if question.startswith("long"):
        return Reply("", fails=PromptTooLong(9, 1))
    if question.startswith("silent"):
        return ""
    if request.prompt.endswith("<Thread>\n1:") or request.prompt.endswith("<Thread>\n2:"):
        return " 1</Thread>"
    if question.startswith("split") and "<Outlines>" not in request.prompt:
        return OUTLINES
    return "</think>7"


async def test_a_report_says_what_was_right_and_what_it_cost():
    agent = create_parallel_agent(ScriptedBackend(script))
    problems = [
        Problem("split 1", "7"),
        Problem("plain", "8"),
        Problem("long", "7"),
        Problem("silent", "7"),
    ]
    heard = []
    report = await evaluate(agent, ArithmeticTask(), problems, on_result=heard.append)
    split, plain, long, silent = report.problems
    assert [each.question for each in report.problems] == [each.question for each in problems]
    assert (split.predicted, split.correct, split.spawned, split.threads) == ("7", True, True, 2)
    assert split.total_tokens > split.critical_path > 0
    assert split.peak_context > plain.peak_context > 0
    assert (plain.predicted, plain.correct, plain.spawned) == ("7", False, False)
    assert (long.predicted, long.correct, long.status, long.total_tokens) == (
        None,
        False,
        "failed",
        0,
    )
    assert long.error.startswith("PromptTooLong: The prompt has 9 tokens")
    assert (silent.predicted, silent.correct, silent.error) == (None, False, None)
    assert report.n == 4
    assert report.accuracy == report.activation_rate == 0.25
    assert (report.mean_threads, report.max_threads, report.errors) == (0.5, 2, 1)
    assert report.mean_total_tokens == pytest.approx(
        sum(p.total_tokens for p in report.problems) / 4
    )
    assert sorted(map(id, heard)) == sorted(map(id, report.problems))


async def test_the_report_has_the_keys_of_the_json_output():
    agent = create_parallel_agent(ScriptedBackend(script))
    data = (await evaluate(agent, ArithmeticTask(), [Problem("q", "7")])).model_dump(mode="json")
    assert data.keys() >= {
        "n", "accuracy", "activation_rate", "mean_threads", "max_threads", "mean_total_tokens",
        "mean_critical_path", "mean_peak_context", "problems",
    }  # fmt: skip
    assert data["problems"][0].keys() >= {
        "question", "answer", "predicted", "correct", "spawned", "threads", "total_tokens",
        "critical_path", "peak_context",
    }  # fmt: skip


async def test_many_problems_share_the_agents_gate_and_are_not_all_open_at_once():
    backend = ScriptedBackend(script)
    agent = create_parallel_agent(backend, limits=Limits(max_concurrency=4))
    problems = [Problem(f"split {i}", "7") for i in range(3 * AT_ONCE)]
    report = await evaluate(agent, ArithmeticTask(), problems)
    assert report.accuracy == 1
    assert backend.peak_in_flight == 4
