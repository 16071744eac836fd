"""`apr-agents trace html`, opened from disk in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from apr_agents.graph.build import create_parallel_agent
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Generated
from tests.graph.chat_script import Asked, Says, ToolChat, spawn
from tests.trace.runs import block, call, thread, trajectory

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = (
    "<script>document.title='taken'</script><!-- <script> ]]> </pre><img src=x onerror=alert()>"
)


def script(asked: Asked) -> Any:
    match asked.thread, asked.number:
        case "0", 0:
            return spawn("one", "two", "three")
        case "0.2", 0:
            return spawn("left", "right " * 9)
        case "0.3", 0:
            return Says(fails=OSError("broke"))
    return f"{asked.thread} says {HOSTILE} {'more ' * len(asked.thread)}"


@pytest_asyncio.fixture(loop_scope="session")
async def run(ask: Any) -> Trajectory:
    """A nested run, whose texts are what a page should fear."""
    run: Trajectory = await ask(create_parallel_agent(ToolChat(script=script)), HOSTILE)
    assert set(run.threads()) == {"0", "0.1", "0.2", "0.3", "0.2.1", "0.2.2"}
    return run


def wide(threads: int) -> Trajectory:
    """A run that splits into many threads."""
    children = [
        thread(f"0.{n}", [call(n % 40 + 1, 100, text=f"text {n}", started=1 + n % 7, seconds=2)])
        for n in range(1, threads)
    ]
    return trajectory(thread("0", [call(9, 9, seconds=1), block(*children, started=1, seconds=9)]))


def row(page: Any, id: str) -> Any:
    return page.locator(f'[id="thread-{id}"]')


async def shown(page: Any) -> list[str]:
    """Ids of the rows that are drawn."""
    ids: list[str] = await page.locator("#threads .id").all_text_contents()
    return ids


async def test_it_opens_from_disk_without_a_request_or_an_error(opened: Any, run: Any) -> None:
    tab = await opened(run)
    assert await shown(tab.page) == list(run.threads())
    assert len(tab.requests) == 1  # the file
    assert tab.faults == []


async def test_it_shows_the_critical_path_as_the_metric_has_it(opened: Any, run: Any) -> None:
    page = (await opened(run)).page
    headline = page.locator(".headlines div", has_text="critical path").locator("dd")
    assert await headline.text_content() == str(run.metrics().critical_path)
    marked = await page.locator(".thread.critical .id").all_text_contents()
    steps = [step for name in marked for step in run.threads()[name].steps]
    own = sum(step.tokens for step in steps if isinstance(step, Generated))
    assert own == run.metrics().critical_path
    assert 1 < len(marked) < len(run.threads())


async def test_the_time_axis_can_be_tokens(opened: Any) -> None:
    long, short = thread("0.1", [call(60)]), thread("0.2", [call(30)])
    page = (await opened(trajectory(thread("0", [call(30), block(long, short)])))).page
    pressed = page.locator(".choice button[aria-pressed=true]")
    assert await pressed.text_content() == "seconds"
    await page.click(".choice button:text-is('tokens')")
    assert await pressed.text_content() == "tokens"
    lanes = page.locator("path.writing")
    widths = [(await lanes.nth(n).bounding_box())["width"] for n in range(3)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.05)
    assert widths[2] == pytest.approx(widths[0], rel=0.05)


async def test_a_click_shows_the_exact_text_of_a_thread(opened: Any, run: Any) -> None:
    tab = await opened(run)
    for name, record in run.threads().items():
        await row(tab.page, name).click()
        assert f"Thread {name}" in await tab.page.locator("#thread-title").text_content()
        text = tab.page.locator(".detail .transcript")
        assert await text.text_content() == record.transcript


async def test_markup_that_a_model_wrote_stays_text(opened: Any, run: Any) -> None:
    tab = await opened(run)
    await row(tab.page, "0.1").click()
    assert HOSTILE in await tab.page.locator(".step pre").first.text_content()
    assert await tab.page.locator("#page :is(script, img)").count() == 0
    assert await tab.page.title() == HOSTILE[:80]
    assert tab.faults == []


async def test_a_join_is_shown_before_and_after(opened: Any, run: Any) -> None:
    page = (await opened(run)).page
    [block] = run.root.blocks
    assert await page.locator(".pieces pre").all_text_contents() == [
        each.transcript for each in block.threads
    ]
    assert await page.locator("pre.joined").text_content() == block.context
    await page.click(".pieces >> text=0.2")
    assert "Thread 0.2" in await page.locator("#thread-title").text_content()


async def test_it_says_why_it_split(opened: Any, run: Any) -> None:
    page = (await opened(run)).page
    rows = page.locator(".decision")
    assert await rows.count() == len(run.decisions())
    first = await rows.first.locator("[role=cell]").all_text_contents()
    made = run.decisions()[0]
    assert first[:2] == [made.thread, "split"]
    assert first[4:7] == [str(made.threads), str(made.tokens), str(made.otherwise)]


async def test_search_and_filter_leave_what_fits(opened: Any, run: Any) -> None:
    page = (await opened(run)).page
    await page.fill("#search", "0.2.1 SAYS")
    assert await shown(page) == ["0.2", "0.2.1"]  # which has read it
    assert "2 of 6 threads" in await page.locator(".found").text_content()
    await page.fill("#search", "nobody wrote this")
    assert await shown(page) == []
    await page.fill("#search", "")
    await page.select_option("select[aria-label=Status]", "failed")
    assert await shown(page) == ["0.3"]


async def test_keys_do_what_the_mouse_does(opened: Any, run: Any) -> None:
    page = (await opened(run)).page
    press = page.keyboard.press
    chosen = page.locator("[aria-selected=true] .id")
    await page.focus("#threads")
    for key, name in [
        ("ArrowDown", "0.1"), ("ArrowDown", "0.2"), ("ArrowRight", "0.2.1"), ("ArrowLeft", "0.2"),
        ("End", "0.3"), ("ArrowUp", "0.2.2"), ("Home", "0"),
    ]:  # fmt: skip
        await press(key)
        assert await chosen.text_content() == name
    await press("Enter")
    assert await page.evaluate("document.activeElement.id") == "thread-title"
    await press("/")
    await page.keyboard.type("left/right")
    assert await page.input_value("#search") == "left/right"
    await press("Escape")
    assert await page.input_value("#search") == ""
    assert await page.evaluate("document.activeElement.id") == "threads"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(opened: Any, run: Any, scheme: str) -> None:
    tab = await opened(run, color_scheme=scheme)
    await tab.page.click("text=All measures")
    await tab.page.click("text=Transcript")
    assert await tab.axe() == []


async def test_the_scheme_can_be_switched(opened: Any, run: Any) -> None:
    page = (await opened(run, color_scheme="dark")).page
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(ground)
    await page.click("button.theme")
    assert await page.evaluate(ground) != dark


async def test_print_has_every_thread_and_no_controls(opened: Any) -> None:
    page = (await opened(wide(200))).page
    assert len(await shown(page)) < 200
    await page.emulate_media(media="print")
    await page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(await shown(page)) == 200
    assert not await page.locator("#search").is_visible()


async def test_ten_thousand_threads_are_there_at_once_and_scroll(opened: Any) -> None:
    page = (await opened(wide(10_000))).page
    ready = await page.evaluate("performance.getEntriesByName('interactive')[0].startTime")
    assert ready < 3000
    assert await page.locator("#threads .thread").count() < 150
    await page.focus("#threads")
    await page.keyboard.press("End")
    await row(page, "0.9999").wait_for()
    assert await page.locator("[aria-selected=true] .id").text_content() == "0.9999"
    assert await page.locator("*").count() < 3000
    await page.fill("#search", "text 7777")
    assert await shown(page) == ["0.7777"]


async def test_a_record_without_times_is_shown_in_tokens(opened: Any, run: Any) -> None:
    tab = await opened(trajectory(thread("0", [call(3, 4)]), began=None, version=1))
    assert await tab.page.locator("button[aria-pressed=true]").text_content() == "tokens"
    assert tab.faults == []
