"""Random model calls of one run, as token ids: they share prefixes, as those of threads do."""

from __future__ import annotations

from hypothesis import strategies as st

from apr_agents.training.trie import Pair

VOCABULARY = 17


@st.composite
def calls(draw: st.DrawFn) -> list[Pair]:
    """Calls, each of which goes on from some point of one before it."""
    token = st.integers(1, 4) if draw(st.booleans()) else st.integers(1, VOCABULARY - 1)
    made: list[Pair] = []
    for _ in range(draw(st.integers(1, 6))):
        begun: list[int] = []
        if made:
            context, completion = draw(st.sampled_from(made))
            path = [*context, *completion]
            begun = path[: draw(st.integers(0, len(path)))]
        given = [*begun, *draw(st.lists(token, max_size=4))] or [1]
        made.append(Pair(given, draw(st.lists(token, min_size=1, max_size=5))))
    return made
