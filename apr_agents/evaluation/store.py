"""The runs that have ended: in memory, and in a file of JSON lines that outlives a kill."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from apr_agents.errors import UnusableFile
from apr_agents.evaluation.run import Case, Configuration, Key, ProblemResult


class Record(BaseModel):
    """A line of the file: one run and its result; see `Key`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: Configuration
    index: int
    problem: str
    result: ProblemResult


class RunStore:
    """Results by the key of their run.

    With a file, what that holds is read now, and every result is appended to it at once. Each
    line is one run, written in one piece; a line that a kill cut short is no run, and a later
    line replaces an earlier one of the same run. Several processes may append to one file.

    Args:
        path: of the file; ``None`` keeps the results in memory only.

    Raises:
        UnusableFile: the file cannot be read or written, or a line is something else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.results: dict[Key, ProblemResult] = {}
        if path is not None:
            self._read(path)

    def add(self, key: Key, result: ProblemResult) -> None:
        """Keep a result.

        Raises:
            UnusableFile: it cannot be written.
        """
        self.results[key] = result
        if self.path is not None:
            record = Record(
                configuration=key.configuration,
                index=key.index,
                problem=key.problem,
                result=result,
            )
            self._append(self.path, record.model_dump_json().encode() + b"\n")

    def missing(self, case: Case, *, retry_errors: bool = False) -> list[int]:
        """Indices of the problems of ``case`` without a result; of errors too, if they count."""
        known = [self.results.get(key) for key in case.keys]
        return [
            index
            for index, result in enumerate(known)
            if result is None or (retry_errors and result.error is not None)
        ]

    def results_of(self, case: Case) -> list[ProblemResult]:
        """The results of ``case``, which must all be there, in the order of its problems."""
        return [self.results[key] for key in case.keys]

    def _read(self, path: Path) -> None:
        self._append(path, b"")  # find out now whether it may be written
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise _unusable(path, error) from error
        for number, line in enumerate(lines, 1):
            try:
                record = Record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                if first["type"] == "json_invalid":  # cut short
                    continue
                where = ".".join(map(str, first["loc"])) or "the line"
                why = f"line {number} is no run of this version ({where}: {first['msg'].lower()})"
                raise UnusableFile(str(path), why) from error
            key = Key(record.configuration, record.index, record.problem)
            self.results[key] = record.result
        if lines[-1]:
            self._append(path, b"\n")  # so that the next line is one of its own

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        try:
            with path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> UnusableFile:
    return UnusableFile(str(path), error.strerror or "it cannot be used")
