"""Keeps Python's garbage collector from holding up the event loop of a wide run."""

from __future__ import annotations

import gc
from functools import cache

MANY = 256
"""Threads in a run that make full collections likely while it goes on."""


@cache
def spare_what_exists() -> None:
    """Have the collector pass over all that exists by now: once in a process, and for good.

    A full collection looks at every object. Those of the imported modules, over a hundred
    thousand with LangChain, hold an event loop up for 30 to 60 ms, several times while two
    thousand threads run. What is passed over is still freed once nothing refers to it; only
    cycles among it stay.
    """
    gc.freeze()
