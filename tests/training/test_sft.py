"""Supervised fine-tuning: it learns, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apr_agents import create_parallel_agent
from apr_agents.errors import UnusableFile
from apr_agents.tasks.arithmetic import APPLY
from apr_agents.training.bundled import Mixture, build_model, export
from apr_agents.training.config import GRPOConfig, Optimization, SFTConfig
from apr_agents.training.learner import Learner, position
from apr_agents.training.models import Policy
from apr_agents.training.pgrpo import PGRPO
from apr_agents.training.sft import SFT, sft
from apr_agents.training.trie import Batch, Pair, collate, pack
from tests.training.toy import CHAIN, TOKENIZER, WIDE, Toy, fresh_model, script

HOW = Optimization(rate=3e-3, precision="float32")


def stream(shard: int, done: float) -> Iterator[list[Batch]]:
    """Two steps a shard, one of them with two batches, of one and the same tiny lesson."""
    lesson = pack([Pair((3, 4, 5), (6, 7, 8)), Pair((3, 4, 5, 6), (9, 1))])
    for count in (1, 2):
        yield [collate([lesson] * (1 + shard % 2), multiple=8)] * count


def fresh(directory: Path, tokens: int, how: Optimization = HOW) -> SFT:
    model = fresh_model(hidden=16, layers=1)
    return SFT(Learner(model, directory, how, {"how": how}), stream, tokens=tokens, save_every=3)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", [HOW, Optimization(rate=3e-3, matrix_rate=0.02)])
def test_training_lowers_the_loss(tmp_path: Path, how: Optimization) -> None:
    fresh(tmp_path, 1000, how).run()
    losses = [row["loss"] for row in logged(tmp_path)]
    assert losses[-1] < losses[0] / 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    through = fresh(tmp_path / "through", 200)
    through.run()

    class Stopped(Exception):
        pass

    def stop(step: int, measured: dict[str, float]) -> None:
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        fresh(tmp_path / "stopped", 200).run(stop)
    resumed = fresh(tmp_path / "stopped", 200)
    assert resumed.learner.steps == 3
    assert 0 < resumed.tokens < 200
    resumed.run()

    assert logged(tmp_path / "stopped") == logged(tmp_path / "through")
    for mine, theirs in zip(
        resumed.learner.model.parameters(), through.learner.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not one")
    with pytest.raises(UnusableFile, match="remove it to start over"):
        fresh(tmp_path, 10)


def test_batches_of_one_step_learn_what_one_batch_would(tmp_path: Path) -> None:
    lessons = [pack([Pair((3, 4, n), range(n, 9))]) for n in (4, 5, 6)]

    def together(shard: int, done: float) -> Iterator[list[Batch]]:
        yield [collate(lessons)]

    def apart(shard: int, done: float) -> Iterator[list[Batch]]:
        yield [collate([lesson]) for lesson in lessons]

    models = []
    for name, steps in (("together", together), ("apart", apart)):
        learner = Learner(fresh_model(hidden=16, layers=1), tmp_path / name, HOW, {})
        SFT(learner, steps, tokens=50, save_every=9).run()
        models.append(learner.model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert logged(tmp_path / "apart") == [
        pytest.approx(row, rel=1e-4) for row in logged(tmp_path / "together")
    ]


@pytest.mark.parametrize(
    ("done", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (0.75, 0.5), (1, 0)]
)
def test_the_rate_rises_stays_and_falls(done: float, expected: float) -> None:
    assert Optimization(warmup=0.1, decay=0.5).factor(done) == pytest.approx(expected)


# --- from files to a model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("untrained")
    fresh_model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return f"local:{folder}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide problems are split, chains are not; one line is broken, and one script as well."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    good = [script(WIDE, split=True), script(CHAIN, split=False)] * 8
    faulty = good[0].model_copy(update={"calls": {"0": ["<Parallel><Outlines></Outlines>"]}})
    rows = [*(each.model_dump_json() for each in good), '{"question": 7}', faulty.model_dump_json()]
    path.write_text("\n".join(rows))
    return path


def asked(untrained: str, data: Path, out: Path, **changes: int) -> SFTConfig:
    made = {"epochs": 30, "batch_tokens": 400, "held_out": 4, "evaluate_every": 1000, **changes}
    how = Optimization(rate=0.01, precision="float32", decay=0.5)
    return SFTConfig(model=untrained, data=(data,), out=out, optimization=how, **made)  # type: ignore[arg-type]


def test_a_model_learns_the_decisions_of_its_scripts_and_serves(
    untrained: str, data: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    sft(asked(untrained, data, tmp_path), told.append)

    assert [line.partition(": ")[0] for line in told[:2]] == ["Left out", "Left out"]
    assert f"{data}, line 17: question: input should be a valid string" in told[0]
    assert "script 17 ('1')" in told[1]
    last = logged(tmp_path)[-1]
    assert last["held_out_loss"] < 0.05
    decided = (last["when"], last["how_many"], last["which"], last["answers"])
    assert decided == (1, 1, 1, 1)

    agent = create_parallel_agent(f"local:{tmp_path / 'model'}")
    for question, answer, blocks in (("1", "7", 1), ("2", "5", 0)):
        output = agent.invoke({"messages": [("user", question)]})
        assert output["messages"][-1].text == answer
        steps = output["trajectory"]["root"]["steps"]
        assert sum(step["kind"] == "block" for step in steps) == blocks
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.apr_most_threads == 3


KILLED = """
import sys
from pathlib import Path
from tests.training.test_sft import asked
from apr_agents.training.sft import sft
sft(asked(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), evaluate_every=20, save_every=5))
"""
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_a_killed_process_goes_on_to_the_same_curve(
    untrained: str, data: Path, tmp_path: Path
) -> None:
    through, killed = (
        asked(untrained, data, tmp_path / name, evaluate_every=20, save_every=5)
        for name in ("through", "killed")
    )
    sft(through, lambda line: None)
    command = [sys.executable, "-c", KILLED, untrained, str(data), str(killed.out)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        log, end = killed.out / "log.jsonl", time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 8:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()

    sft(killed, lambda line: None)
    assert logged(killed.out) == [
        pytest.approx(row, rel=1e-4, abs=1e-6) for row in logged(through.out)
    ]


def test_files_with_nothing_to_learn_are_refused(
    untrained: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnusableFile, match="held out"):
        sft(asked(untrained, data, tmp_path, held_out=16), lambda line: None)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n{}\n")
    with pytest.raises(UnusableFile, match="no script"):
        sft(asked(untrained, empty, tmp_path), lambda line: None)


# --- several processes -----------------------------------------------------------------------

TOGETHER = """
import sys
from pathlib import Path
from apr_agents.training.learner import together
from tests.training.test_sft import both_loops
with together():
    both_loops(Path(sys.argv[1]))
"""


def both_loops(out: Path) -> None:
    """Fine-tune and reinforce a little; each process takes its part."""

    def stream(shard: int, done: float) -> Iterator[list[Batch]]:
        tries = [pack([Pair((3, 4, n), range(n, 9))]) for n in (4, 5, 6, 6)]
        rank, ranks = position()
        yield [collate([trie]) for trie in tries[rank::ranks]]

    model = fresh_model(hidden=16, layers=1)
    how = Optimization(rate=1e-3, precision="float32")
    SFT(Learner(model, out / "sft", how, {}), stream, tokens=100, save_every=50).run()
    config = GRPOConfig(
        model="toy", tasks=("toy",), out=out / "grpo", steps=2, problems=4, group=2, budgets=(3,),
        max_tokens=8, reward="correctness", kl=1.0, optimization=how,
    )  # fmt: skip
    PGRPO(Policy(model, TOKENIZER), [Toy()], config).run()


def test_two_processes_learn_what_one_would(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, str(script), str(tmp_path / "together")]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=ENVIRONMENT)
    both_loops(tmp_path / "alone")
    for loop in ("sft", "grpo"):
        alone, together = (
            torch.load(tmp_path / name / loop / "checkpoint.pt", weights_only=True)
            for name in ("alone", "together")
        )
        assert alone["progress"] == together["progress"]
        for name, weights in alone["model"].items():
            torch.testing.assert_close(together["model"][name], weights, atol=1e-5, rtol=1e-4)
        assert logged(tmp_path / "together" / loop) == [
            pytest.approx(row, rel=1e-3, abs=1e-5) for row in logged(tmp_path / "alone" / loop)
        ]


# --- the bundled model's recipe --------------------------------------------------------------


def test_the_mixture_is_the_same_for_the_same_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        [batch] = next(iter(Mixture(TOKENIZER, seed=seed, shard_size=20)(0, 1.0)))
        return batch.ids_BT

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_drill_is_lines_whose_results_are_to_be_written() -> None:
    lines = Mixture(TOKENIZER, seed=0).drill(random.Random(0))
    assert len(lines) == 11
    for context, completion in lines:
        left, result = TOKENIZER.decode(context).splitlines()[-1], TOKENIZER.decode(completion)
        asked = re.fullmatch(r"(\d+)([-+*])(\d+)=", left)
        assert asked is not None
        first, operator, second = asked.groups()
        assert int(result) == APPLY[operator](int(first), int(second))


def test_an_exported_model_loads_with_the_auto_classes(tmp_path: Path) -> None:
    model = build_model(TOKENIZER)
    export(model, TOKENIZER, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    text = "((12*7) + 5)-2\nThreads: 4\n<think>\n12*7+5-2"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == TOKENIZER(text)["input_ids"]
    with torch.no_grad():
        mine, theirs = model(torch.tensor([ids])).logits, loaded(torch.tensor([ids])).logits
    # Weights are shipped in bfloat16.
    torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)
