"""Notices that a policy has stopped deciding: it never splits any more, always does, or spams."""

from __future__ import annotations

from collections.abc import Mapping

NEVER, ALWAYS, SPAM = 0.01, 0.99, 0.5
"""Shares: of runs that split, at which it is as good as none or all; of repeated threads."""


class Watch:
    """Looks at what is measured in every step.

    Args:
        patience: steps in a row after which it is no accident; 0 never says anything.
        state: what an earlier watch had seen.

    Attributes:
        state: what it has seen: plain data.
    """

    def __init__(self, patience: int, state: Mapping[str, int] | None = None) -> None:
        self.patience = patience
        self.state = dict(state or {})

    def see(self, measured: Mapping[str, float]) -> str | None:
        """What has become of the policy, if that is a collapse.

        A policy that starts out at one end is given the time to leave it.

        Args:
            measured: ``split_parallel`` and ``split_control``: shares of runs that split, of
                those that might, where some or none of the work can be done at once;
                ``repeated``: share of threads that repeat a sibling. What is missing did not
                occur.
        """
        parallel, control = measured.get("split_parallel"), measured.get("split_control")
        never = parallel is not None and self._stays("never", parallel <= NEVER)
        always = control is not None and self._stays("always", control >= ALWAYS)
        spams = self._lasts("spam", measured.get("repeated", 0.0) > SPAM)
        if never:
            return "it never splits any more"
        if always:
            return "it always splits, even where nothing can be done at once"
        return "most of its threads repeat a sibling" if spams else None

    def _stays(self, end: str, reached: bool) -> bool:
        if not reached:
            self.state[f"left {end}"] = 1
        return self._lasts(end, reached and f"left {end}" in self.state)

    def _lasts(self, what: str, holds: bool) -> bool:
        self.state[what] = self.state.get(what, 0) + 1 if holds else 0
        return 0 < self.patience <= self.state[what]
