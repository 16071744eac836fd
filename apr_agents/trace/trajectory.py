"""The full record of one run. JSON in, JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from apr_agents.errors import InvalidTrace
from apr_agents.trace.metrics import Metrics, measure
from apr_agents.types import ThreadResult


class Trajectory(BaseModel):
    """One run: what was asked, what every thread did, what was answered.

    Attributes:
        version: of this format.
        question: the messages' text as the model saw it, before the model wrote.
        answer: the final answer; ``None`` when the run gave none.
        model: name of the backend.
        protocol: name of the protocol.
        merge: name of the merge policy.
        budget: threads that the model was told it may use.
        root: the root thread, and below it all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    question: str
    answer: str | None
    model: str
    protocol: str
    merge: str
    budget: int
    root: ThreadResult

    def metrics(self, *, baseline_tokens: int | None = None) -> Metrics:
        """Measure the run; ``baseline_tokens`` is what a sequential run of it generated."""
        return measure(self.root, baseline_tokens=baseline_tokens)

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
