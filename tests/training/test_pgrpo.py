"""P-GRPO: its loss by hand, and a policy that learns when to split."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from apr_agents import Trajectory
from apr_agents.backends.base import Backend
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import BackendFailed, InvalidOption, TrainingCollapsed, UnusableFile
from apr_agents.training.config import GRPOConfig, Optimization
from apr_agents.training.forward import target_logprobs
from apr_agents.training.models import Policy
from apr_agents.training.pgrpo import PGRPO, advantages, distance, policy_loss
from apr_agents.training.rewards import Correctness, Outcome, Reward
from apr_agents.training.rollouts import Rollout, Setting, draw
from apr_agents.training.runs import serving
from apr_agents.training.scripts import Rules
from apr_agents.training.trie import Pair, collate, pack
from tests.training.toy import CHAIN, TOKENIZER, WIDE, Toy, fresh_model, undecided

HOW = Optimization(rate=1e-3, precision="float32", warmup=0, decay=0, weight_decay=0)


def config(out: Path, **changes: Any) -> GRPOConfig:
    made = GRPOConfig(
        model="toy",
        tasks=("toy",),
        out=out,
        steps=6,
        problems=4,
        budgets=(3,),
        rho=2.0,
        clip=0.5,
        max_tokens=100,
        optimization=HOW,
    )
    return replace(made, **changes)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- by hand -----------------------------------------------------------------------------


def test_advantages_are_centred_and_not_divided_by_sigma() -> None:
    rewards = torch.tensor([[1.2, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.4, 0.2, 0.2, -0.8], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards), expected)
    sigma = math.sqrt((0.4**2 + 0.2**2 + 0.2**2 + 0.8**2) / 4)
    divided = advantages(rewards, divide_by_sigma=True)
    torch.testing.assert_close(divided, expected / sigma, atol=1e-4, rtol=1e-4)


def test_the_surrogate_stops_where_the_ratio_is_clipped() -> None:
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    worth = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = torch.tensor([-1.0] * 5, requires_grad=True)
    loss = policy_loss(logprobs, (logprobs - ratios.log()).detach(), worth, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.0, -1.2, 1.5, -0.5, 0.8]))
    [gradient] = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 0.0, 1.5, -0.5, 0.0]))


def test_the_distance_from_the_reference_is_never_negative() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0, -1.0, -3.0])
    expected = torch.tensor([0.0, math.e - 2, math.exp(-2.5) + 1.5])
    torch.testing.assert_close(distance(logprobs, reference), expected)


def test_every_token_of_every_thread_gets_the_advantage_of_its_run(tmp_path: Path) -> None:
    model = fresh_model(hidden=16, layers=1)
    loop = PGRPO(Policy(model, TOKENIZER), [Toy()], config(tmp_path))
    setting = Setting("0", Toy(), WIDE, Rules(3))
    split = [Pair([4, 5], [6, 7]), Pair([4, 5, 6, 7, 8], [9, 3, 1]), Pair([4, 5, 6, 7, 9], [1])]
    alone = [Pair([4, 5], [6, 9, 9, 1])]
    even = [[Pair([4], [5])], [Pair([4], [7, 7])]]
    groups = [
        [Rollout(setting, None, pairs, True) for pairs in (split, alone)],
        [Rollout(setting, None, pairs, True) for pairs in even],
    ]
    gradients: list[Tensor] = []

    def keep(losses: Iterator[Tensor], *, done: float) -> dict[str, float]:
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        gradients.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        model.zero_grad()
        return {}

    loop.learner.update = keep  # type: ignore[method-assign,assignment]
    loop.learn(groups, [[1.5, 1.0], [1.0, 1.0]])

    tokens = 6 + 4 + 1 + 2
    loss = torch.zeros(())
    for pairs, advantage in ((split, 0.25), (alone, -0.25)):
        for pair in pairs:  # one by one
            loss = loss - advantage * target_logprobs(model, collate([pack([pair])])).sum() / tokens
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


# --- end to end ----------------------------------------------------------------------------


def test_it_learns_to_split_what_is_wide_and_to_leave_chains_alone(tmp_path: Path) -> None:
    PGRPO(undecided(), [Toy()], config(tmp_path, steps=7)).run()
    rows = logged(tmp_path)

    def split(kind: str, rows: list[dict[str, float]]) -> float:
        return fmean(row[f"split_{kind}"] for row in rows if f"split_{kind}" in row)

    def gap(rows: list[dict[str, float]]) -> float:
        return split("parallel", rows) - split("control", rows)

    # Which way a thread goes depends on what is computed beside it, so runs differ a little.
    assert gap(rows[:1]) < 0.4
    assert gap(rows[-3:]) > 0.6


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    asked = config(
        through, steps=4, problems=2, group=3, epochs=2, kl=0.01, save_every=2, samples_every=3
    )
    PGRPO(undecided(), [Toy()], asked).run()

    class Killed(Exception):
        pass

    def die(step: int, measured: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        PGRPO(undecided(), [Toy()], replace(asked, out=stopped)).run(die)
    assert [row["step"] for row in logged(stopped)] == [1, 2, 3]
    again = PGRPO(undecided(), [Toy()], replace(asked, out=stopped))
    assert again.learner.steps == 2
    again.run()
    assert [row["step"] for row in logged(stopped)] == [1, 2, 3, 4]
    for mine, theirs in zip(logged(stopped), logged(through), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)

    samples = sorted((stopped / "samples").glob("*.json"))
    assert [path.name[:11] for path in samples] == ["00003-best-", "00003-worst"]
    assert all(Trajectory.load(path).question.startswith(("1", "2")) for path in samples)


def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=1, problems=1, group=2)
    PGRPO(undecided(), [Toy()], asked).run()
    with pytest.raises(UnusableFile, match=r"rho: 2\.0 then, 0\.5 now"):
        PGRPO(undecided(), [Toy()], replace(asked, rho=0.5))


class PaysForThreads(Reward):
    """What should never be paid for."""

    def __call__(self, outcomes: list[Outcome]) -> list[float]:  # type: ignore[override]
        return [float(bool(each.root and each.root.blocks)) for each in outcomes]


def test_a_collapse_ends_it(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=40, patience=2, problems=1)
    with pytest.raises(TrainingCollapsed, match="always splits") as ended:
        PGRPO(undecided(), [Toy((CHAIN,))], asked, reward=PaysForThreads()).run()
    assert ended.value.step < 40
    assert len(logged(tmp_path)) == ended.value.step


def test_runs_may_be_sampled_elsewhere(tmp_path: Path) -> None:
    pushed: list[Tensor] = []

    @contextmanager
    def elsewhere(model: Any, tokenizer: Any, *, temperature: float) -> Iterator[Backend]:
        pushed.append(next(model.parameters()).detach().clone())
        with serving(model, tokenizer, temperature=temperature) as backend:
            yield backend

    asked = config(tmp_path, steps=2, problems=1, group=4)
    PGRPO(undecided(), [Toy()], asked, reward=Correctness(), serve=elsewhere).run()
    first, second = pushed
    assert not torch.equal(first, second)


# --- what is asked ---------------------------------------------------------------------------


def test_budgets_and_prices_are_drawn_for_each_problem_and_told_in_its_question() -> None:
    def drawn(seed: str, *prices: float) -> list[Setting]:
        return draw([Toy()], 40, Rules(0), budgets=(0, 2, 8), prices=prices, seed=seed)

    settings = drawn("a", 0.01, 0.05)
    assert {setting.rules.budget for setting in settings} == {0, 2, 8}
    assert {setting.question for setting in settings} == {
        f"{problem}\nA thread costs {price}." for problem in "12" for price in ("0.01", "0.05")
    }
    assert len({setting.name for setting in settings}) == 40
    assert settings == drawn("a", 0.01, 0.05)
    assert settings != drawn("b", 0.01, 0.05)
    assert {setting.question for setting in drawn("a")} == {"1", "2"}


@pytest.mark.parametrize(
    "wrong",
    [{"group": 1}, {"steps": 0}, {"temperature": 0.0}, {"budgets": ()}, {"budgets": (-1,)}],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        config(tmp_path, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"reward": "threads"}, {"protocol": "tool_calls"}, {"merge": "nothing"}]
)
def test_a_name_that_nothing_has_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    policy = Policy(fresh_model(hidden=16, layers=1), TOKENIZER)
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        PGRPO(policy, [Toy()], config(tmp_path, **wrong))


def test_where_every_run_breaks_off_there_is_nothing_to_learn(tmp_path: Path) -> None:
    @contextmanager
    def down(model: Any, tokenizer: Any, *, temperature: float) -> Iterator[Backend]:
        yield ScriptedBackend(lambda request: Reply("", fails=OSError("no server")))

    policy = Policy(fresh_model(hidden=16, layers=1), TOKENIZER)
    with pytest.raises(BackendFailed, match="no server"):
        PGRPO(policy, [Toy()], config(tmp_path), serve=down).run()
