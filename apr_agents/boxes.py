r"""Boxes, in which models that were taught mathematics put their answers: ``\boxed{…}``."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> Iterator[str]:
    """What is inside the boxes that are closed and have no box inside."""
    boxes: list[int | None] = []
    innermost = -1
    for brace in _BRACES.finditer(text) if r"\boxed" in text else ():
        if brace[0] == "{":
            boxes.append(None)
        elif brace[0] == "}" and boxes:
            start = boxes.pop()
            if start is not None and start > innermost:
                innermost = start
                yield text[start : brace.start()]
        elif brace[0].startswith(r"\boxed"):
            boxes.append(brace.end())
