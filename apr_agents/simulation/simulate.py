"""Users who ask at the same time, one simulated server, and what that takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import NamedTuple

from langchain_core.messages import HumanMessage

from apr_agents.graph.build import create_parallel_agent
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.simulation.clock import VirtualTimeLoop
from apr_agents.simulation.model import IdealModel, question
from apr_agents.simulation.scenario import Scenario
from apr_agents.simulation.server import SimulatedServer
from apr_agents.strategies.self_consistency import SelfConsistency
from apr_agents.trace.metrics import critical_path
from apr_agents.trace.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scenario took. Times are virtual seconds, counts are means over the users.

    Attributes:
        threads: that ran, the root not counted.
        critical_path: tokens that had to wait for each other.
        latency_p50: from a user's question to the answer: half of the users waited no longer.
        queued: mean time that a call waited for a lane.
        queued_p95: 95 % of the calls waited no longer.
        utilisation: share of the lanes' time in which they were taken, from the first
            question to the last answer.
        prefix_hits: share of all prompt tokens that were known already.
        accuracy: share of the users who got the right answer.
        makespan: from the first question to the last answer.
    """

    threads: float
    total_tokens: float
    critical_path: float
    latency_mean: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    queued: float
    queued_p95: float
    utilisation: float
    prefix_hits: float
    accuracy: float
    makespan: float


class _Answered(NamedTuple):
    began: float
    ended: float
    threads: int
    total_tokens: int
    critical_path: int
    correct: bool


def simulate(scenario: Scenario) -> Outcome:
    """Run the real graph on the simulated model; the same scenario has the same outcome."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_simulate(scenario))


async def _simulate(scenario: Scenario) -> Outcome:
    model = IdealModel(scenario.workload, seed=scenario.seed)
    server = SimulatedServer(scenario.hardware, model.reply)
    votes = scenario.strategy == "self_consistency"
    strategy = SelfConsistency(n=scenario.samples) if votes else scenario.strategy
    agent = create_parallel_agent(
        server,
        protocol=ThreadWeaver("isolated" if scenario.isolated else "prefix"),
        merge=None if votes else scenario.merge,
        limits=scenario.limits,
        strategy=strategy,
    )
    loop = asyncio.get_running_loop()

    async def ask(user: int, comes: float) -> _Answered:
        await asyncio.sleep(comes)
        asked = HumanMessage(question(scenario.workload, user))
        state = await agent.ainvoke({"messages": [asked]})
        trajectory = Trajectory.model_validate(state["trajectory"])
        return _Answered(
            began=comes,
            ended=loop.time(),
            threads=sum(1 for _ in trajectory.root.walk()) - 1,
            total_tokens=trajectory.root.tokens,
            critical_path=critical_path(trajectory.root),
            correct=trajectory.answer == scenario.workload.answer,
        )

    return _outcome(
        await asyncio.gather(*(ask(*arrival) for arrival in enumerate(_arrivals(scenario), 1))),
        server,
    )


def _arrivals(scenario: Scenario) -> list[float]:
    """When the users come."""
    if scenario.arrivals is None:
        return [0.0] * scenario.users
    random, times = Random(f"{scenario.seed}/arrivals"), [0.0]
    while len(times) < scenario.users:
        times.append(times[-1] + random.expovariate(scenario.arrivals))
    return times


def _outcome(answered: Sequence[_Answered], server: SimulatedServer) -> Outcome:
    latencies = [each.ended - each.began for each in answered]
    makespan = max(each.ended for each in answered)
    return Outcome(
        threads=fmean(each.threads for each in answered),
        total_tokens=fmean(each.total_tokens for each in answered),
        critical_path=fmean(each.critical_path for each in answered),
        latency_mean=fmean(latencies),
        latency_p50=percentile(latencies, 50),
        latency_p95=percentile(latencies, 95),
        latency_p99=percentile(latencies, 99),
        queued=fmean(server.queued),
        queued_p95=percentile(server.queued, 95),
        utilisation=server.busy / (server.hardware.lanes * makespan),
        prefix_hits=1 - server.prefilled / server.prompt_tokens,
        accuracy=fmean(each.correct for each in answered),
        makespan=makespan,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that ``percent`` % of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
