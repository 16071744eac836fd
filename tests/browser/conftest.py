"""A real browser, for the pages that this package makes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from apr_agents.trace.html import report
from apr_agents.trace.trajectory import Trajectory

NO_BROWSER = "no Chromium is installed"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(NO_BROWSER)
    async with async_playwright() as playwright:
        # Its sandbox needs rights that a container may not have. It loads these pages only.
        launched = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        await launched.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if missed := [each for each in skipped if NO_BROWSER in str(each.longrepr)]:
        told = f"NOT RUN: {len(missed)} tests of the pages in a browser, because {NO_BROWSER}."
        terminalreporter.write_line(told, red=True, bold=True)


class Tab:
    """A page that is open, and all that went wrong in it.

    Attributes:
        requests: addresses it asked for.
        faults: what the console and uncaught errors said.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on(
            "console",
            lambda told: self.faults.append(told.text) if told.type == "error" else None,
        )

    async def axe(self) -> list[str]:
        """Faults of accessibility that axe calls serious or critical."""
        await self.page.evaluate(AXE)
        found = await self.page.evaluate("axe.run()")
        return [
            f"{fault['id']}: {node['html']}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]


Visit = Callable[..., Awaitable[Tab]]


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Visit]:
    """Opens an address."""
    contexts: list[Any] = []

    async def visit(address: str, **options: Any) -> Tab:
        contexts.append(await browser.new_context(**{"color_scheme": "light", **options}))
        opened = Tab(await contexts[-1].new_page())
        opened.page.set_default_timeout(15_000)
        await opened.page.goto(address)
        return opened

    yield visit
    for context in contexts:
        await context.close()


@pytest.fixture
def opened(tab: Visit, tmp_path: Path) -> Visit:
    """Opens the report of a run from disk."""

    async def visit(run: Trajectory, **options: Any) -> Tab:
        file = tmp_path / "run.html"
        file.write_text(report(run), encoding="utf-8")
        return await tab(file.as_uri(), **options)

    return visit
