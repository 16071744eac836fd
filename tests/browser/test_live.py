"""`apr-agents ui` and `solve --ui`, in a real browser, on the bundled model."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apr_agents.cli.ui import EXAMPLE

COMMAND = [str(Path(sys.executable).with_name("apr-agents"))]

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

Process = subprocess.Popen[str]


@pytest.fixture
def served() -> Iterator[Callable[..., tuple[Process, str]]]:
    """Starts a command that serves the page; the process, and the page's address."""
    started: list[Process] = []

    def start(*arguments: str) -> tuple[Process, str]:
        command = [*COMMAND, *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        assert started[-1].stderr is not None
        told = started[-1].stderr.readline()
        assert told.startswith("The page is at http://127.0.0.1:")
        return started[-1], told.split()[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: Process) -> tuple[int, str, str]:
    """What comes of it on Ctrl-C."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


async def test_a_question_is_seen_from_its_asking_to_its_answer(tab: Any, served: Any) -> None:
    process, address = served("ui", "--port", "0")
    live = await tab(address)
    page = live.page
    await page.fill("[name=question]", EXAMPLE)
    await page.fill("[name=threads]", "4")
    await page.evaluate(
        """() => {
            window.seen = new Set();
            const note = () => {
                for (const mark of document.querySelectorAll("#threads .mark"))
                    seen.add(mark.title);
            };
            new MutationObserver(note).observe(document, {subtree: true, childList: true});
        }"""
    )
    await page.click("button:text-is('Ask')")
    await page.locator(".headlines").wait_for()
    assert "1014" in await page.locator(".answer").text_content()
    assert await page.locator("#threads .id").all_text_contents() == [
        "0", "0.1", "0.2", "0.3", "0.4",
    ]  # fmt: skip
    assert {"thinking", "waiting", "done"} <= set(await page.evaluate("[...seen]"))
    assert await live.axe() == []
    await page.select_option("[name=strategy]", "sequential")
    await page.click("button:text-is('Ask')")
    await page.locator(".axis >> text=1 thread").wait_for()
    await page.locator(".headlines").wait_for()
    assert "1014" in await page.locator(".answer").text_content()
    assert live.faults == []
    assert ended(process) == (0, "", "")


async def test_a_run_can_be_stopped_and_a_mistake_is_one_line(tab: Any, served: Any) -> None:
    _, address = served("ui", "--port", "0")
    page = (await tab(address)).page
    await page.fill("[name=question]", EXAMPLE)
    await page.click("button:text-is('Ask')")
    await page.click("button:text-is('Stop')")
    await page.locator(".answer >> text=stopped").wait_for()
    await page.select_option("[name=strategy]", "best_of_n")
    await page.fill("[name=threads]", "99999999999")
    await page.evaluate("document.querySelector('[name=threads]').removeAttribute('pattern')")
    await page.click("button:text-is('Ask')")
    told = page.locator("[role=alert]")
    assert "neither 'auto' nor a whole number" in await told.text_content()


async def test_solve_shows_its_run_on_the_page_and_its_answer_on_stdout(
    tab: Any, served: Any, tmp_path: Path
) -> None:
    record = tmp_path / "run.json"
    process, address = served("solve", "25+42", "--ui", "--trace", str(record))
    page = (await tab(address)).page
    await page.locator(".answer >> text=67").wait_for()
    await page.locator(".headlines").wait_for()
    code, output, errors = ended(process)
    assert (code, output) == (0, "67\n")
    assert "critical path" in errors
    assert record.exists()
