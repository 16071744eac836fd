"""What servers say when they refuse, in all the forms that they have for it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple


class Passing(Exception):
    """A failure that the next attempt may not meet."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.why, self.retry_after = why, retry_after


_OVERFLOW = re.compile(
    r"context.?(?:length|size|window)|model length|input length|prompt is too long", re.IGNORECASE
)
_LIMIT = re.compile(
    r"(?:context length|context size|model length|input length of)(?: is| of)?(?: only)? \(?(\d+)"
    r'|"n_ctx": ?(\d+)',
    re.IGNORECASE,
)
_TOKENS = re.compile(
    r"(\d+) (?:input tokens|in (?:the|your) (?:messages|prompt)|tokens from the input)"
    r"|(?:input|request|prompt)(?: length)?(?: contains| has)? \(?(\d+)"
    r'|"n_prompt_tokens": ?(\d+)',
    re.IGNORECASE,
)
_TOGETHER = re.compile(r"requested (?:about )?(?:a total of )?(\d+) tokens", re.IGNORECASE)


class Overflow(NamedTuple):
    """A prompt and its answer that do not fit the model's context, as far as the server says."""

    tokens: int | None
    limit: int | None
    room: int

    @classmethod
    def of(cls, text: str, max_tokens: int) -> Overflow | None:
        """What a refusal says about it; ``None`` for any other refusal."""
        if not _OVERFLOW.search(text):
            return None
        text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
        limit, tokens = _number(_LIMIT, text), _number(_TOKENS, text)
        if tokens is None and (together := _number(_TOGETHER, text)) is not None:
            tokens = max(1, together - max_tokens)
        room = limit - tokens if limit is not None and tokens is not None else 0
        if "at least" in text:  # the server stopped counting there
            room = min(room, max_tokens // 2)
        return cls(tokens, limit, room)


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(next(group for group in found.groups() if group)) if found else None


def is_error(event: Any) -> bool:
    """Whether an event of a stream tells of an error."""
    return isinstance(event, dict) and (bool(event.get("error")) or event.get("object") == "error")


def status_of(event: dict[str, Any]) -> int:
    """The HTTP status that such an event stands for."""
    error = event.get("error")
    code = (error if isinstance(error, dict) else event).get("code")
    return code if type(code) is int and 400 <= code < 600 else 500


def message_of(data: Any) -> str:
    """The message in an error of one of the forms that servers use."""
    while isinstance(data, dict):
        data = next(
            (data[key] for key in ("error", "message", "detail") if data.get(key)), str(data)
        )
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)


def pause_of(headers: Mapping[str, str]) -> float | None:
    """Seconds for which a server wants to be left alone, where it says."""
    said = headers.get("retry-after", "").strip()
    with suppress(ValueError):
        seconds = float(said)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None
