"""Schemathesis on the server's own description.

It wants other versions of packages than langgraph-cli does, so it has an environment of its
own, which `make` installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.harness import NAME, Scripted, running

COMMAND = Path(sys.prefix, "schemathesis", "bin", "schemathesis")


def document(url: str) -> dict[str, Any]:
    """The description, with what is not wrong but would keep the tests from getting anywhere."""
    told: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    for name in ("CompletionRequest", "ChatRequest"):
        properties = told["components"]["schemas"][name]["properties"]
        properties["model"]["enum"] = [NAME]  # others are a 404
        for limit in properties.keys() & {"max_tokens", "max_completion_tokens"}:
            properties[limit]["anyOf"][0]["maximum"] = 3
    return told


@pytest.mark.skipif(not COMMAND.exists(), reason="`make setup` installs schemathesis")
def test_every_answer_is_as_described(make_engine: Callable[..., Scripted], tmp_path: Path) -> None:
    with running(make_engine()) as server:
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(document(server.url)))
        # What goes together with what, the description cannot say.
        checks = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        asked = [COMMAND, "run", file, "--url", server.url, "--seed", "7", "-n", "20", *checks]
        done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.becomes_idle()
        assert server.engine.asked
