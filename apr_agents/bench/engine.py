"""What a fork and a join cost on an engine, beside other engines.

The workload: a parent of 800 tokens, N children that each add 30 tokens of their own and
generate 64 at once, and a join that sees the parent and the end of each child and generates
64 more. Each measurement is a process of its own.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_agents.bench.apart import report, run_apart

if TYPE_CHECKING:
    from apr_agents.bench.engines import Generator

PARENT, SUFFIX, GENERATED, RETURNED = 800, 30, 64, 8
"""Tokens of the parent, of a child's own prompt, of an output, and of a child in the join."""


class EngineName(StrEnum):
    """What generates."""

    apr = "apr"
    transformers_cb = "transformers_cb"
    hf_batched = "hf_batched"
    hf_sequential = "hf_sequential"
    xllamacpp = "xllamacpp"
    vllm = "vllm"


class Transport(StrEnum):
    """How it is asked."""

    in_process = "in_process"
    http = "http"


TRANSPORTS = {
    EngineName.apr: (Transport.in_process, Transport.http),
    EngineName.xllamacpp: (Transport.http,),
    EngineName.vllm: (Transport.http,),
}
"""How engines can be asked; all others in process only."""

PEERS = {EngineName.xllamacpp: "xllamacpp"}
"""What has to be installed for an engine, beside this package and its extras."""

INSTALLED = [name for name in EngineName if name != EngineName.vllm or find_spec("vllm")]
"""What is measured if nothing is said. vLLM brings a torch of its own, so no extra brings it."""


@dataclass(frozen=True, kw_only=True)
class EngineCase:
    """One thing to measure.

    Attributes:
        directory: of the model.
        threads: that the engine may use on a CPU.
    """

    engine: EngineName
    transport: Transport
    n: int
    dtype: str
    directory: str
    threads: int

    @property
    def peers(self) -> dict[EngineName, str]:
        """Its part of `PEERS`."""
        return {self.engine: PEERS[self.engine]} if self.engine in PEERS else {}

    def __str__(self) -> str:
        return f"{self.engine}, {self.transport}, n={self.n}, {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """What it took.

    Attributes:
        dtype: of the weights; a GGUF file has its own.
        total_seconds: from the first request to the last token of the join.
        generated_tokens: by all children and the join.
        prefilled_tokens: prompt tokens computed; ``None`` where the engine does not say.
        unique_tokens: prompt tokens that differ from all before them in their place.
    """

    engine: EngineName
    transport: Transport
    n: int
    dtype: str
    total_seconds: float
    generated_tokens: int
    prefilled_tokens: int | None
    unique_tokens: int


def cases(
    engines: Sequence[EngineName], ns: Sequence[int], *, dtype: str, directory: str, threads: int
) -> list[EngineCase]:
    """Every engine, however it can be asked."""
    return [
        EngineCase(
            engine=engine,
            transport=transport,
            n=n,
            dtype=dtype,
            directory=directory,
            threads=threads,
        )
        for n in ns
        for engine in engines
        for transport in TRANSPORTS.get(engine, (Transport.in_process,))
    ]


def measure_apart(case: EngineCase) -> EngineRow:
    """Measure in a fresh process.

    Raises:
        MissingExtra: the engine is not installed.
        MeasurementFailed: anything else that went wrong.
    """
    data = run_apart(__name__, asdict(case), what=str(case), threads=case.threads)
    return EngineRow(**data)


def measure(case: EngineCase) -> EngineRow:
    """Measure in this process, after a short run that pays for first uses."""
    import torch

    torch.set_num_threads(case.threads)
    vocabulary = json.loads(Path(case.directory, "config.json").read_text())["vocab_size"]
    engine = (_served if case.transport == Transport.http else _in_process)(case)
    try:
        _fork_join(engine, case.n, random.Random(1), vocabulary, parent=64, generated=4)
        before = engine.prefilled
        started = time.perf_counter()
        generated = _fork_join(
            engine, case.n, random.Random(2), vocabulary, parent=PARENT, generated=GENERATED
        )
        seconds = time.perf_counter() - started
        after = engine.prefilled
    finally:
        engine.close()
    return EngineRow(
        engine=case.engine,
        transport=case.transport,
        n=case.n,
        dtype="q4_1" if case.engine == EngineName.xllamacpp else case.dtype,
        total_seconds=seconds,
        generated_tokens=generated,
        prefilled_tokens=None if before is None or after is None else after - before,
        unique_tokens=PARENT + case.n * SUFFIX + case.n * RETURNED,
    )


def _in_process(case: EngineCase) -> Generator:
    import torch

    from apr_agents.bench import engines

    directory, dtype = Path(case.directory), getattr(torch, case.dtype)
    makers: dict[EngineName, Callable[[], Generator]] = {
        EngineName.apr: lambda: engines.Apr(directory, dtype),
        EngineName.transformers_cb: lambda: engines.TransformersCB(directory, dtype),
        EngineName.hf_batched: lambda: engines.HF(directory, dtype, batched=True),
        EngineName.hf_sequential: lambda: engines.HF(directory, dtype, batched=False),
    }
    return makers[EngineName(case.engine)]()


def _served(case: EngineCase) -> Generator:
    from apr_agents.bench import servers

    directory = Path(case.directory)
    makers: dict[EngineName, Callable[[], Generator]] = {
        EngineName.apr: lambda: servers.AprServer(directory, case.dtype),
        EngineName.xllamacpp: lambda: servers.LlamaCpp(directory, case.n),
        EngineName.vllm: lambda: servers.VllmServer(directory, case.dtype),
    }
    return makers[EngineName(case.engine)]()


def _fork_join(
    engine: Generator, n: int, rng: random.Random, vocabulary: int, *, parent: int, generated: int
) -> int:
    """Run the workload; how many tokens were generated."""

    def tokens(count: int) -> list[int]:
        # Without the first ones, of which many are control tokens.
        return [rng.randrange(vocabulary // 10, vocabulary) for _ in range(count)]

    prefix = tokens(parent)
    outputs = engine.generate([prefix + tokens(SUFFIX) for _ in range(n)], generated)
    joined = [token for output in outputs for token in output.ids[-RETURNED:]]
    outputs += engine.generate([prefix + joined], generated)
    return sum(output.tokens for output in outputs)


def _report(data: dict[str, Any], _: Path) -> dict[str, Any]:
    return asdict(measure(EngineCase(**data)))


if __name__ == "__main__":
    report(_report)
