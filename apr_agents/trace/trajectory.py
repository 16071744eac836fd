"""The full record of one run. JSON in, JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from apr_agents.errors import InvalidTrace
from apr_agents.trace.decisions import SplitDecision, decisions
from apr_agents.trace.metrics import Metrics, Prices, measure
from apr_agents.trace.timeline import Unit
from apr_agents.types import ThreadResult

MEASURED = frozenset(
    {"at", "began", "started", "waited", "lanes", "first_token", "seconds", "cached_tokens"}
)
"""Fields of records and events that tell of the machine and its load. All others are the same
whenever a run is repeated with the same seed."""


class Trajectory(BaseModel):
    """One run: what was asked, what every thread did, what was answered.

    Attributes:
        version: of this format. Records of version 1 have no times.
        began: when; ``None`` in version 1. All other times count from here.
        question: the messages' text as the model saw it, before the model wrote.
        answer: the final answer; ``None`` when the run gave none.
        model: name of the backend.
        protocol: name of the protocol.
        merge: name of the merge policy.
        budget: threads that the model was told it may use.
        root: the root thread, and below it all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1, 2] = 2
    began: AwareDatetime | None = None
    question: str
    answer: str | None
    model: str
    protocol: str
    merge: str
    budget: int
    root: ThreadResult

    def metrics(
        self, *, baseline_tokens: int | None = None, prices: Prices | None = None
    ) -> Metrics:
        """Measure the run.

        Args:
            baseline_tokens: what a sequential run of the same question generated.
            prices: of the model's tokens.
        """
        return measure(self.root, baseline_tokens=baseline_tokens, prices=prices)

    def decisions(self) -> list[SplitDecision]:
        """Why it split or did not: every decision, thread by thread."""
        return decisions(self.root)

    @property
    def unit(self) -> Unit:
        """What its timeline can be drawn in: tokens, where it has no times."""
        return "seconds" if self.began is not None else "tokens"

    def threads(self) -> dict[str, ThreadResult]:
        """Every thread under its id, the root (``"0"``) included."""
        return {thread.id: thread for thread in self.root.walk()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> None:
        """Write the run to a JSON file."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a run from a JSON file.

        Raises:
            InvalidTrace: the file is no trajectory; one line says why.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise InvalidTrace(str(path), error.strerror or "it cannot be read") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise InvalidTrace(str(path), f"{where}: {first['msg'].lower()}") from error
