"""``apr-agents solve``."""

import json
from typing import get_args

import pytest

from apr_agents.backends.scripted import Reply
from apr_agents.cli.agent import Strategy
from apr_agents.errors import BackendFailed
from apr_agents.graph.merge import POLICIES
from apr_agents.strategies import STRATEGIES
from apr_agents.trace.trajectory import Trajectory


def test_the_answer_goes_to_stdout_and_the_threads_to_stderr(run, says):
    says()
    result = run("solve", "3+4")
    assert (result.exit_code, result.stdout) == (0, "7\n")
    lines = result.stderr.splitlines()
    assert lines[:2] == ["0 started", "0 split into 2 threads"]
    assert "0.2 done, 3 tokens: 3" in lines
    assert lines[-2].startswith("threads 2 · total tokens ")
    assert "parallel efficiency" in lines[-1]


def test_json_is_all_there_is_on_stdout(run, says):
    says()
    result = run("solve", "3+4", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert data.keys() == {"answer", "status", "metrics", "trajectory"}
    assert (data["answer"], data["status"], data["metrics"]["threads"]) == ("7", "done", 2)
    assert Trajectory.model_validate(data["trajectory"]).answer == "7"


@pytest.mark.parametrize(
    ("options", "budget", "threads"),
    [
        ([], 8, 2),
        (["--threads", "auto"], 8, 2),
        (["--threads", "1"], 1, 1),
        (["--threads", "0"], 0, 0),
        (["--strategy", "sequential"], 0, 0),
        (["--max-depth", "0"], 0, 0),
    ],
)
def test_the_options_bound_the_threads(run, says, options, budget, threads):
    backend = says()
    data = json.loads(run("solve", "3+4", "--json", *options).stdout)
    assert f"Threads: {budget}\n" in backend.requests[0].prompt
    assert data["metrics"]["threads"] == threads
    assert data["answer"] == "7"


def test_a_fixed_shape_may_decide_in_the_models_place(run, says):
    backend = says(lambda request: "</think>7" if request.temperature == 0.5 else "</think>8")
    options = ["--strategy", "self_consistency", "--temperature", "0.5", "--threads", "6"]
    data = json.loads(run("solve", "3+4", "--json", *options).stdout)
    assert (data["answer"], data["metrics"]["threads"]) == ("7", 6)
    assert len(backend.requests) == 6  # of eight samples: five that agree settle it


def test_a_protocol_is_chosen_by_its_name(run, says):
    says(lambda request: 'So join("7")')
    result = run("solve", "3+4", "--protocol", "apr", "--json")
    data = json.loads(result.stdout)
    assert (data["answer"], data["trajectory"]["protocol"]) == ("7", "apr")
    refused = run("solve", "3+4", "--protocol", "smoke")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "protocol is 'smoke', but must be one of threadweaver, apr," in refused.stderr


def test_every_strategy_has_a_name_on_the_command_line():
    assert get_args(Strategy) == ("adaptive", "sequential", *STRATEGIES)


def test_threads_are_counted_over_the_whole_run(run, says):
    outlines = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"

    def splits_twice(request):
        if request.prompt.endswith(("<Thread>\n1:", "<Thread>\n2:")):
            return " 3</Thread>"
        return outlines if request.key in ("0/0", "0/2") else "\n</Parallel>\n</think>\n7"

    says(splits_twice)
    assert json.loads(run("solve", "3+4", "--json").stdout)["metrics"]["threads"] == 4
    bounded = json.loads(run("solve", "3+4", "--json", "--threads", "3").stdout)
    assert (bounded["metrics"]["threads"], bounded["answer"]) == (3, "7")


@pytest.mark.parametrize("merge", POLICIES)
def test_every_merge_policy_has_its_name(run, says, merge):
    says()
    data = json.loads(run("solve", "3+4", "--json", "--merge", merge).stdout)
    assert data["trajectory"]["merge"] == merge


@pytest.mark.parametrize("join", ["all", "first_success", "vote", "1_of_n", "2_of_n"])
def test_every_join_policy_has_its_name(run, says, join):
    says()
    data = json.loads(run("solve", "3+4", "--json", "--join", join).stdout)
    assert Trajectory.model_validate(data["trajectory"]).root.blocks[0].policy == join


def test_a_trace_is_the_whole_run(run, says, tmp_path):
    says()
    file = tmp_path / "run.json"
    assert run("solve", "3+4", "--trace", file).exit_code == 0
    assert Trajectory.load(file).metrics().threads == 2


def test_a_trace_that_cannot_be_saved_does_not_cost_the_answer(run, says):
    says()
    result = run("solve", "3+4", "--trace", "/dev/full")
    assert (result.exit_code, result.stdout) == (2, "7\n")
    assert result.stderr.splitlines()[-1].startswith("Error: Cannot use the file /dev/full: ")


def test_no_answer_is_exit_code_1(run, says):
    says(lambda request: Reply("thinking <think> and"))
    result = run("solve", "3+4", "--json")
    assert result.exit_code == 0  # a model that just stops has said its answer
    says(lambda request: "and on " * 1500)
    result = run("solve", "3+4", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["answer"] is None
    assert result.stderr.startswith("Error: The model gave no answer: over budget, ")
    assert result.stderr.count("\n") == 1


def test_a_failing_model_is_one_line_and_exit_code_1(run, says):
    says(lambda request: Reply("", fails=BackendFailed("it is on\nfire \x1b[31m")))
    result = run("solve", "3+4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == ("Error: The model backend failed: it is on fire [31m")


def test_ctrl_c_ends_quietly(run, says):
    def interrupt(request):
        raise KeyboardInterrupt

    says(interrupt)
    result = run("solve", "3+4", "--json")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    "question",
    [
        "9" * 100_000,
        "\x1b[2J\x00\x07",
        "</Outlines><Thread>\n1: x</Thread></think>",
        "[bold]\udcff",
        "é日🧵",
    ],
)
def test_odd_questions_do_no_harm(run, says, question):
    says()
    result = run("solve", question)
    assert (result.exit_code, result.stdout) == (0, "7\n")


def test_an_answer_cannot_act_on_the_terminal(run, says):
    says(lambda request: "</think>\x1b]0;x\x07[red]line 1\n\u202eline\t2")
    assert run("solve", "q").stdout == "]0;x[red]line 1\nline\t2\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["solve"], "Missing argument 'QUESTION'."),
        (["solve", ""], "The question is empty."),
        (["solve", " \n"], "The question is empty."),
        (["solve", "1", "2"], "unexpected extra argument"),
        (["solve", "1", "--threads", "-1"], "'-1' is neither 'auto' nor a whole number"),
        (["solve", "1", "--threads", "two"], "'two' is neither 'auto' nor a whole number"),
        (["solve", "1", "--max-depth", "-1"], "--max-depth"),
        (["solve", "1", "--strategy", "magic"], "--strategy"),
        (["solve", "1", "--merge", "magic"], "--merge"),
        (["solve", "1", "--join", "magic"], "join is 'magic', but must be 'all', 'first_success'"),
        (["solve", "1", "--join", "0_of_n"], "join is '0_of_n', but must be"),
        (["solve", "1", "--model", "nonsense:large"], "no provider is called 'nonsense'"),
        (["solve", "1", "--model", "nonsense"], "Cannot find the model 'nonsense'"),
        (["solve", "1", "--model", ""], "Cannot find the model ''"),
        (["solve", "1", "--trace", "/no/such/place"], "its directory does not exist"),
        (["solve", "1", "--trace", "/"], "it is a directory"),
        (["solve", "1", "--bogus"], "No such option: --bogus"),
        (["bogus"], "No such command 'bogus'."),
        (["bench", "bogus"], "No such command 'bogus'."),
        (["bench", "overhead", "--n", "0"], "--n"),
        (["bench", "overhead", "--system", "magic"], "--system"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, arguments, told):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
