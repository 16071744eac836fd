"""How much more a completions server could take: its metrics, read once a second at most."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from httpx import Response
from prometheus_client.parser import text_string_to_metric_families

Page = Callable[[str], Awaitable[Response | None]]
"""From a path to what a server has there; ``None`` where it has nothing."""

AGE = 1.0
"""Seconds for which a reading holds."""

TIMEOUT = 2.0
"""Seconds that a reading may take."""

BUSY = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
}
"""By server, its gauges of requests that run and of requests that wait."""

GAUGES = ("apr:free_lanes", *(name for names in BUSY.values() for name in names))


class Capacity:
    """What is known about the lanes of one server.

    Args:
        page: reads a page of the server.
        lanes: requests that it runs at once, where it does not tell.
    """

    def __init__(self, page: Page, lanes: int | None) -> None:
        self._page, self._lanes = page, lanes
        self._read_at = -math.inf
        self._free: int | None = None

    async def free_lanes(self) -> int | None:
        """As the backend's; one call at a time."""
        if time.monotonic() - self._read_at > AGE:
            self._free = None
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT):
                    self._free = await self._read()
            self._read_at = time.monotonic()
        return self._free

    async def _read(self) -> int | None:
        page = await self._page("/metrics")
        found = gauges(page.text) if page is not None else {}
        if "apr:free_lanes" in found:
            return max(0, found["apr:free_lanes"])
        for kind, (running, waiting) in BUSY.items():
            if running in found:
                if found.get(waiting):
                    return 0
                lanes = await self._all_lanes(kind)
                return None if lanes is None else max(0, lanes - found[running])
        slots = await self._json("/slots")
        if isinstance(slots, list) and slots and all(isinstance(slot, dict) for slot in slots):
            return sum(slot.get("is_processing") is False for slot in slots)
        return None

    async def _all_lanes(self, kind: str) -> int | None:
        """Requests that the server runs at once at most; asked for until it tells."""
        if self._lanes is None and kind == "sglang":
            told = await self._json("/server_info") or await self._json("/get_server_info")
            with suppress(KeyError, TypeError, ValueError):
                name = "effective_max_running_requests_per_dp"
                self._lanes = sum(int(state[name]) for state in told["internal_states"]) or None
        if self._lanes is None and kind == "llamacpp":
            told = await self._json("/props")
            with suppress(KeyError, TypeError, ValueError):
                self._lanes = int(told["total_slots"])
        return self._lanes

    async def _json(self, path: str) -> Any:
        page = await self._page(path)
        with suppress(ValueError):
            return page.json() if page is not None else None
        return None


def gauges(page: str) -> dict[str, int]:
    """The gauges above in a page of Prometheus metrics, each summed over the server's engines."""
    # A page has thousands of lines.
    known = [line for line in page.split("\n") if line.startswith(GAUGES)]
    sums: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join([*known, ""])):
            for name, labels, value, *_ in family.samples:
                # The ranks of one engine all tell the same.
                if all(labels.get(rank, "0") == "0" for rank in ("tp_rank", "pp_rank")):
                    sums[name] = sums.get(name, 0.0) + value
    except (ValueError, LookupError):
        return {}
    return {
        name: int(value) for name, value in sums.items() if name in GAUGES and math.isfinite(value)
    }
