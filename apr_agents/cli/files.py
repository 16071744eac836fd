"""Files that commands write."""

from __future__ import annotations

import os
from pathlib import Path

from apr_agents.errors import UnusableFile


def check_writable(path: Path) -> None:
    """Find out before the work, not after it.

    Raises:
        UnusableFile: no file can be written there.
    """
    if path.is_dir():
        raise UnusableFile(str(path), "it is a directory")
    if not path.parent.is_dir():
        raise UnusableFile(str(path), "its directory does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UnusableFile(str(path), "it may not be written")


def write(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        UnusableFile: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnusableFile(str(path), error.strerror or "it cannot be written") from error
