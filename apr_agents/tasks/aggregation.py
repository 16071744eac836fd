"""Counts and sums over the records of a long document: map-reduce."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from apr_agents.errors import InvalidOption
from apr_agents.tasks.answers import REQUEST, number
from apr_agents.tasks.base import Demonstration, Drawn, Problem
from apr_agents.tasks.prose import CHARACTERS_PER_TOKEN, sentences
from apr_agents.tasks.teaching import added_up, block, cheapest, contiguous_runs

Kind = Literal["count", "sum"]

PLACES = ("Bergen", "Gdansk", "Lisbon", "Odessa", "Porto", "Trieste")
GOODS = ("bolts", "lamps", "paint", "tiles")
KINDS: tuple[Kind, ...] = ("count", "sum")
LEAST_TOKENS = 40
"""Of a record; one without a note has fewer."""


class Record(NamedTuple):
    """One delivery. ``sender`` and ``returned`` are there to be confused with others."""

    number: int
    sender: str
    warehouse: str
    goods: str
    units: int
    returned: int

    def __str__(self) -> str:
        return (
            f"Record {self.number}: sender {self.sender}, warehouse {self.warehouse}, "
            f"goods {self.goods}, units {self.units}, returned {self.returned}."
        )


class Query(NamedTuple):
    """A count or a sum over the records of one warehouse or of one kind of goods."""

    kind: Kind
    field: Literal["warehouse", "goods"]
    wanted: str

    def __str__(self) -> str:
        what = {
            "count": "How many records have",
            "sum": "What is the sum of the units of all records with",
        }
        return (
            f"{what[self.kind]} {self.field} {self.wanted}? Only the fields of the records count, "
            "not their notes."
        )

    def value(self, record: Record) -> int:
        """What the record adds to the answer."""
        if getattr(record, self.field) != self.wanted:
            return 0
        return 1 if self.kind == "count" else record.units


@dataclass(frozen=True)
class AggregationTask(Drawn):
    """Problems whose answer is one exact integer.

    Work is counted in records read; the parts are the records, and to put together what the
    threads found is one record more.

    Attributes:
        records: how many there are.
        tokens: length of the document, about; notes without meaning fill it. 0 for no notes.
        kind: what is asked; either if not given.
    """

    family: ClassVar[str] = "aggregation"

    records: Annotated[int, Field(ge=2, le=100_000)] = 64
    tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 4000
    kind: Kind | None = None

    def __post_init__(self) -> None:
        least = LEAST_TOKENS * self.records
        if 0 < self.tokens < least:
            raise InvalidOption(
                "tokens", self.tokens, f"0 or at least {least} for {self.records} records"
            )

    def draw(self, rng: random.Random, index: int) -> Problem:
        records = [
            Record(
                number=number,
                sender=rng.choice(PLACES),
                warehouse=rng.choice(PLACES),
                goods=rng.choice(GOODS),
                units=rng.randint(1, 99),
                returned=rng.randint(1, 99),
            )
            for number in range(1, self.records + 1)
        ]
        query = Query(
            kind=rng.choice(KINDS) if self.kind is None else self.kind,
            field=(field := rng.choice(("warehouse", "goods"))),
            wanted=getattr(rng.choice(records), field),
        )
        document = "\n".join(self._shown(rng, record) for record in records)
        return Problem(
            f"{document}\n\n{query} {REQUEST}",
            str(sum(map(query.value, records))),
            parallel_share=self.records / (self.records + 1),
            parts=self.records,
            facts={"records": records, "query": query},
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return number(answer) == int(problem.answer)

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour: a line for each record, in runs of records at once if that pays."""
        records: Sequence[Record] = problem.facts["records"]
        query: Query = problem.facts["query"]
        shown = partial(Demonstration, problem.question, budget, answer=problem.answer)

        def split(threads: int) -> Demonstration:
            runs = contiguous_runs(records, threads)
            results = [sum(map(query.value, run)) for run in runs]
            return shown(
                thinking=added_up(results),
                block=block(
                    outlines=[f"{run[0].number}-{run[-1].number}" for run in runs],
                    threads=[_read(run, query) for run in runs],
                    conclusions=list(map(str, results)),
                ),
            )

        return cheapest(shown(thinking=_read(records, query)), split, min(budget, len(records)))

    def _shown(self, rng: random.Random, record: Record) -> str:
        room = CHARACTERS_PER_TOKEN * self.tokens // self.records - len(str(record))
        return str(record) if room <= 0 else f"{record} {_note(rng, room)}"


def _note(rng: random.Random, characters: int) -> str:
    """A note that names goods, a place and a number, and says nothing about its record."""
    asked = (
        f"Note: asked about {rng.randint(1, 99)} units of {rng.choice(GOODS)} "
        f"for warehouse {rng.choice(PLACES)}."
    )
    return " ".join([asked, *sentences(rng, characters - len(asked))])


def _read(records: Sequence[Record], query: Query) -> str:
    """A line for each record, with the total so far where it counts; the total ends it."""
    values = list(map(query.value, records))
    lines = [
        f"{record.number} {getattr(record, query.field)}" + (f" +{value}={total}" if value else "")
        for record, value, total in zip(records, values, accumulate(values), strict=True)
    ]
    return "\n".join([*lines, str(sum(values))])
