"""Who attends to what in one step, divided into products. Knows slots and positions only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from apr_agents.engine.pool import Pool, Run, length_of, slots_of, split

WORTHWHILE = 1 << 19
"""Bytes of keys and values from which copying them takes longer than a product of its own."""


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens of one sequence among the tokens of a step.

    Attributes:
        first: place of the first among the tokens of the step.
        count: how many there are.
        position: how many tokens of the sequence come before them.
        context: slots of those, a list for each stretch that sequences share.
        own: their own slots.
    """

    first: int
    count: int
    position: int
    context: list[list[Run]]
    own: list[Run]


@dataclass(frozen=True)
class Shared:
    """All ``rows`` see the same slots, apart from what the bias rules out.

    Attributes:
        bias_QS: to add to the scores; ``Q`` are the rows, each ``groups`` times.
    """

    rows: slice | Tensor
    slots: slice | Tensor
    bias_QS: Tensor | None


@dataclass(frozen=True)
class Gathered:
    """Row ``r`` sees ``slots_RS[r]``, apart from what the bias rules out.

    Attributes:
        bias: to add to the scores: ``R1GS``, ``G`` being the ``groups``.
    """

    rows: slice | Tensor
    slots_RS: Tensor
    bias: Tensor


class Plan:
    """Who attends to what in one step.

    Args:
        rows: what the step computes, in the order of its tokens.

    Attributes:
        slots_T: the slots of all tokens of the step.
        windows: of each layer that has asked, how many tokens back it sees.
    """

    def __init__(self, pool: Pool, rows: Sequence[Rows], device: torch.device) -> None:
        self.pool, self.device, self._rows = pool, device, rows
        self.slots_T = slots_of([run for part in rows for run in part.own], device)
        self.windows: dict[int, int | None] = {}
        self._parts: dict[tuple[int | None, int, int], list[Shared | Gathered]] = {}

    def parts(self, layer: int, window: int | None, groups: int) -> list[Shared | Gathered]:
        """What to compute in a layer. Each row sees at least one slot of each of its parts.

        Args:
            window: how many tokens back it sees, the token itself among them; ``None`` for all.
            groups: query heads of one key-value head.
        """
        self.windows[layer] = window
        key = (window, groups, self.pool.slot_bytes(layer))
        if key not in self._parts:
            dtype = self.pool.keys[layer].dtype
            self._parts[key] = _Planner(*key, dtype, self.device).plan(self._rows)
        return self._parts[key]


class _Member(NamedTuple):
    """Rows of one sequence: ``total`` from the place ``first`` on; the position of the first."""

    first: int
    total: int
    position: int


class _Piece(NamedTuple):
    """Slots of consecutive tokens, and the position of the first of these."""

    runs: list[Run]
    position: int


@dataclass(frozen=True)
class _Planner:
    window: int | None
    groups: int
    slot_bytes: int
    dtype: torch.dtype
    device: torch.device

    def plan(self, rows: Sequence[Rows]) -> list[Shared | Gathered]:
        single: dict[int, list[Run]] = {r.first: [*r.own] for r in rows if r.count == 1}
        together: dict[tuple[_Member, ...], list[_Piece]] = {}
        for piece, members in self._seen(rows):
            copied = length_of(piece.runs) * len(members) * self.slot_bytes
            if copied < WORTHWHILE and all(member.first in single for member in members):
                for member in members:
                    single[member.first] += self._visible(piece, member).runs
            else:
                visible = self._visible(piece, *members)
                together.setdefault(tuple(members), []).append(visible)
        parts: list[Shared | Gathered] = []
        for seeing, pieces in together.items():
            parts += self._products(seeing, pieces)
        for r in rows:
            if r.count > 1:
                member = _Member(r.first, r.count, r.position)
                parts.append(self._shared([member], _single_runs([_Piece(r.own, r.position)])))
        if single:
            parts.append(self._gathered(single))
        return parts

    def _seen(self, rows: Sequence[Rows]) -> list[tuple[_Piece, list[_Member]]]:
        """Each stretch of context that somebody sees, and who does."""
        seen: dict[int, tuple[_Piece, list[_Member]]] = {}
        for r in rows:
            position = 0
            for runs in r.context:
                end = position + length_of(runs)
                if seeing := self._seeing(end, [_Member(r.first, r.count, r.position)]):
                    piece = _Piece(runs, position)
                    seen.setdefault(runs[0].start, (piece, []))[1].extend(seeing)
                position = end
        return list(seen.values())

    def _seeing(self, end: int, members: Iterable[_Member]) -> list[_Member]:
        """The rows that see what is before the position ``end``: first ones, farthest back."""
        if self.window is None:
            return list(members)
        reach = end - 1 + self.window
        clipped = (m._replace(total=min(m.total, reach - m.position)) for m in members)
        return [member for member in clipped if member.total > 0]

    def _visible(self, piece: _Piece, *members: _Member) -> _Piece:
        """The part of a piece that at least one row sees."""
        if self.window is None:
            return piece
        first = min(member.position for member in members) - self.window + 1
        skipped = max(0, first - piece.position)
        return _Piece(split(piece.runs, skipped)[1], piece.position + skipped)

    def _products(self, members: tuple[_Member, ...], pieces: list[_Piece]) -> list[Shared]:
        """Long runs get a product each, as they lie; the others are copied for one in common."""
        runs = _single_runs(pieces)
        long = [one for one in runs if length_of(one.runs) * self.slot_bytes >= WORTHWHILE]
        short = [one for one in runs if length_of(one.runs) * self.slot_bytes < WORTHWHILE]
        together = [*([one] for one in long), *([short] if short else [])]
        return [self._shared(members, some) for some in together]

    def _shared(self, members: Sequence[_Member], pieces: list[_Piece]) -> Shared:
        members = self._seeing(pieces[-1].position + length_of(pieces[-1].runs), members)
        runs = [run for piece in pieces for run in piece.runs]
        slots: slice | Tensor = slice(runs[0].start, runs[0].end)
        if len(runs) > 1:
            slots = slots_of(runs, self.device)
        places = [Run(member.first, member.total) for member in members]
        return Shared(_places(places, self.device), slots, self._bias(members, pieces))

    def _bias(self, members: Sequence[_Member], pieces: list[_Piece]) -> Tensor | None:
        """What some of the rows do not see: what comes after them, or too far before them."""
        last = pieces[-1].position + length_of(pieces[-1].runs) - 1
        looks_ahead = any(member.position < last for member in members)
        latest = max(member.position + member.total - 1 for member in members)
        outlived = self.window is not None and latest - self.window >= pieces[0].position
        if not (looks_ahead or outlived):
            return None
        asking = [Run(member.position, member.total) for member in members]
        asked = [Run(piece.position, length_of(piece.runs)) for piece in pieces]
        asking_R, asked_S = slots_of(asking, self.device)[:, None], slots_of(asked, self.device)
        allowed_RS = asked_S <= asking_R
        if self.window is not None:
            allowed_RS &= asked_S > asking_R - self.window
        return self._minus_infinity(allowed_RS).repeat_interleave(self.groups, 0)

    def _gathered(self, single: dict[int, list[Run]]) -> Gathered:
        """One part for all rows in ``single``, padded to the longest."""
        lengths = torch.tensor([length_of(runs) for runs in single.values()])
        slots = slots_of([run for runs in single.values() for run in runs], torch.device("cpu"))
        starts = lengths.cumsum(0) - lengths
        places_RS = torch.arange(int(lengths.max())).expand(len(lengths), -1)
        allowed_RS = places_RS < lengths[:, None]
        # A row's own slot fills it up: what another sequence computes must not touch it.
        slots_RS = slots[starts[:, None] + places_RS * allowed_RS].to(self.device)
        bias = self._minus_infinity(allowed_RS.to(self.device))[:, None, None]
        places = [Run(first, 1) for first in single]
        return Gathered(
            _places(places, self.device),
            slots_RS,
            bias.expand(-1, -1, self.groups, -1).contiguous(),
        )

    def _minus_infinity(self, allowed: Tensor) -> Tensor:
        bias = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(~allowed, float("-inf"))


def _single_runs(pieces: list[_Piece]) -> list[_Piece]:
    """The same slots in pieces of one run each; what lies side by side becomes one."""
    found: list[_Piece] = []
    for runs, position in pieces:
        for run in runs:
            (last,), first = found[-1] if found else ([Run(-1, 0)], 0)
            if last.end == run.start and first + last.length == position:
                found[-1] = _Piece([Run(last.start, last.length + run.length)], first)
            else:
                found.append(_Piece([run], position))
            position += run.length
    return found


def _places(rows: list[Run], device: torch.device) -> slice | Tensor:
    """Rows of a step; a slice where they lie side by side."""
    if all(before.end == run.start for before, run in pairwise(rows)):
        return slice(rows[0].start, rows[-1].end)
    return slots_of(rows, device)
