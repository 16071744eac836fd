"""The file tools see one folder and nothing else, and every refusal is one clear line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

ROOT = Path(__file__).parents[2]
SPEC = spec_from_file_location("tool_files", ROOT / "tools" / "files.py")
assert SPEC is not None
assert SPEC.loader is not None
MODULE: Any = module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
SEARCH_HERE, READ_HERE = MODULE.file_tools(ROOT / "tools")

SECRET = "the secret"
Ask = Callable[..., str]


class Search:
    @property
    def tool_constructor(self) -> BaseTool:
        return SEARCH_HERE

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"pattern": r"^tools\b", "glob": "*.py", "regex": True}


class Read:
    @property
    def tool_constructor(self) -> BaseTool:
        return READ_HERE

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"path": "files.py", "start": 3, "lines": 2}


class TestSearchUnit(Search, ToolsUnitTests):
    pass


class TestSearchIntegration(Search, ToolsIntegrationTests):
    pass


class TestReadUnit(Read, ToolsUnitTests):
    pass


class TestReadIntegration(Read, ToolsIntegrationTests):
    pass


def message(tool: BaseTool, arguments: dict[str, Any]) -> ToolMessage:
    answer = tool.invoke({"name": tool.name, "args": arguments, "id": "1", "type": "tool_call"})
    assert isinstance(answer, ToolMessage)
    assert isinstance(answer.content, str)
    return answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with neighbours that hold a secret, and links that lead to them."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "folder2").mkdir()
    (tmp_path / "folder2" / "secret.txt").write_text(SECRET)
    folder = tmp_path / "folder"
    for name, text in {
        "a.txt": "alpha\nbeta\n",
        "b.py": "import os\n",
        "docs/one.md": "one alpha\n",
        "docs/deep/two.md": "two alpha\r\nlast",
        "docs2/three.md": "three alpha\n",
        ".hidden/four.md": "four alpha\n",
        ".env": "five alpha\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / "absolute").symlink_to(tmp_path / "secret.txt")
    (folder / "relative").symlink_to("../secret.txt")
    (folder / "chain").symlink_to("relative")
    (folder / "away").symlink_to(tmp_path / "folder2")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "inner").symlink_to("docs/one.md")
    (folder / "docs" / "cycle").symlink_to("..")
    return folder


@pytest.fixture
def search(folder: Path) -> Ask:
    return lambda *values, **options: ask(folder, 0, ("pattern", "glob"), values, options)


@pytest.fixture
def read(folder: Path) -> Ask:
    return lambda *values, **options: ask(folder, 1, ("path", "start", "lines"), values, options)


def ask(root: Path, tool: int, names: tuple[str, ...], values: Any, options: Any) -> str:
    """The text of an answer; ``fails=True`` expects an error of one line."""
    fails = options.pop("fails", False)
    answer = message(
        MODULE.file_tools(root)[tool], {**dict(zip(names, values, strict=False)), **options}
    )
    assert (answer.status == "error") == fails, answer.content
    assert not fails or len(answer.text.splitlines()) == 1
    assert SECRET not in answer.text
    return answer.text


def test_a_search_answers_path_line_and_text_in_order(search: Ask) -> None:
    assert search("alpha").splitlines() == [
        "a.txt:1: alpha",
        "docs/deep/two.md:1: two alpha",
        "docs/one.md:1: one alpha",
        "docs2/three.md:1: three alpha",
    ]


@pytest.mark.parametrize(
    ("glob", "files"),
    [
        ("*.md", ["docs/deep/two.md", "docs/one.md", "docs2/three.md"]),
        ("one.md", ["docs/one.md"]),
        ("**/one.md", ["docs/one.md"]),
        ("docs/*", ["docs/one.md"]),
        ("docs/**", ["docs/deep/two.md", "docs/one.md"]),
        ("docs/**/*.md", ["docs/deep/two.md", "docs/one.md"]),
        ("docs?/*", ["docs2/three.md"]),
        ("**/deep/**/two.md", ["docs/deep/two.md"]),
        ("**", ["a.txt", "docs/deep/two.md", "docs/one.md", "docs2/three.md"]),
        ("./a.txt", ["a.txt"]),
        ("/docs/*", ["docs/one.md"]),
        ("./*.md", []),
        ("docs", []),
        ("a.t[x]t", []),
        ("../*", []),
        ("/etc/*", []),
        ("", []),
    ],
)
def test_a_glob_chooses_files(search: Ask, glob: str, files: list[str]) -> None:
    lines = search("alpha", glob).splitlines()

    assert [line.partition(":")[0] for line in lines if ": " in line] == files
    assert files or lines[0].startswith("no match in ")


def test_a_pattern_is_plain_text_unless_said_otherwise(search: Ask) -> None:
    assert search("^al.ha$") == "no match in 5 files"
    assert search("^al.ha$", regex=True) == "a.txt:1: alpha"
    assert search("(?i)^ALPHA", regex=True) == "a.txt:1: alpha"
    assert search(")", "a.txt") == "no match in 1 files"


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a", "\\", r"\1", "(?:a{9999}){9999}"])
def test_an_unreadable_regex_is_one_line(search: Ask, pattern: str) -> None:
    assert "PatternError" in search(pattern, regex=True, fails=True)
    assert search(pattern) == "no match in 5 files"


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(x+x+)+y", "(.*a){25}c"])
def test_most_slow_regexes_are_fast_here(folder: Path, search: Ask, pattern: str) -> None:
    (folder / "slow.txt").write_text("a" * 100_000 + "b\n")
    started = time.monotonic()

    search(pattern, "slow.txt", regex=True)

    assert time.monotonic() - started < 5


@pytest.mark.parametrize("pattern", ["(?=(a+)+$)b", "(?!x)(a|aa)+$"])
def test_the_others_are_stopped(
    folder: Path, search: Ask, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "LIMITS", {**MODULE.LIMITS, "max_feed_duration_secs": 0.3})
    (folder / "slow.txt").write_text("a" * 400_000 + "b\n")
    started = time.monotonic()

    search(pattern, "slow.txt", regex=True, fails=True)

    assert time.monotonic() - started < 8


def test_a_pattern_that_takes_gigabytes_elsewhere_is_refused(search: Ask) -> None:
    assert "Error" in search("(?:(?:(?:(?:a{50}){50}){50}){50}){50}", regex=True, fails=True)


def test_a_glob_of_many_stars_does_not_hang(folder: Path, search: Ask) -> None:
    (folder / ("a" * 200)).write_text("alpha")
    started = time.monotonic()

    search("alpha", "*a" * 100 + "b")
    search("alpha", "**/a/" * 90 + "b")

    assert time.monotonic() - started < 5


def test_many_matches_are_cut_and_it_says_so(folder: Path, search: Ask) -> None:
    (folder / "many.txt").write_text("alpha\n" * 150_000)

    lines = search("alpha", "many.txt").splitlines()

    assert len(lines) == 101
    assert lines[99] == "many.txt:100: alpha"
    assert lines[100] == "… more than 100 matches; narrow the pattern or the glob"


def test_exactly_a_hundred_matches_are_not_cut(folder: Path, search: Ask) -> None:
    (folder / "many.txt").write_text("alpha\n" * 100)

    assert search("alpha", "many.txt").splitlines()[-1] == "many.txt:100: alpha"


def test_a_long_line_is_cut(folder: Path, search: Ask) -> None:
    (folder / "wide.txt").write_text("alpha " * 100_000)

    assert len(search("alpha", "wide.txt")) < 250


def test_a_search_that_takes_long_answers_what_it_has(
    search: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "SEARCH", MODULE.SEARCH.replace("monotonic() + 5", "monotonic()"))

    assert search("alpha") == "… stopped after 5 seconds; narrow the glob"


def test_files_that_are_not_text_are_skipped_and_counted(folder: Path, search: Ask) -> None:
    (folder / "binary").write_bytes(b"alpha\0")
    (folder / "latin").write_bytes(b"alpha \xff")
    (folder / "huge").write_bytes(b"alpha" * 250_000)
    os.mkfifo(folder / "pipe")

    lines = search("alpha").splitlines()

    assert len(lines) == 5
    assert lines[4] == "… 4 skipped: too large, binary, not UTF-8 or not allowed"


def test_a_million_empty_lines_are_a_file_like_any_other(folder: Path, search: Ask) -> None:
    (folder / "empty.txt").write_text("\n" * 999_994 + "alpha")

    assert search("alpha", "empty.txt") == "empty.txt:999995: alpha"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_text_do_no_harm(folder: Path, search: Ask) -> None:
    (folder / os.fsdecode(b"\xff.txt")).write_text("alpha")
    (folder / "a.txt:1: forged\nb.txt").write_text("alpha")

    assert search("alpha", "*.txt").splitlines()[0] == "a.txt:1: alpha"
    assert "forged" not in search("alpha")


def test_a_very_deep_folder_does_no_harm(folder: Path, search: Ask) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)

    assert search("alpha", "a.txt").splitlines()[0] == "a.txt:1: alpha"


@pytest.mark.parametrize("pattern", ["", "x" * 501, "x" * 10**6])
def test_a_pattern_has_a_length(search: Ask, pattern: str) -> None:
    search(pattern, fails=True)


def test_a_folder_can_be_read_line_by_line(read: Ask) -> None:
    assert read("a.txt") == "alpha\nbeta"
    assert read("a.txt", 2) == "beta"
    assert read("a.txt", 1, 1) == "alpha\n… lines 1 to 1 of 2; go on with start=2"
    assert read("docs/deep/two.md") == "two alpha\nlast"
    assert read("./docs/../a.txt", 2) == "beta"
    assert read("inner") == "one alpha"
    assert read(".env") == "five alpha"


def test_a_long_file_is_read_page_by_page(folder: Path, read: Ask) -> None:
    rows = [f"row {i} {'x' * (i % 300)}" for i in range(1, 1001)]
    (folder / "long.txt").write_text("\n".join(rows))
    start, seen = 1, []
    while start:
        page, _, note = read("long.txt", start, 10**9).partition("\n… ")
        assert len(page) <= 20_000
        seen += page.split("\n")
        start = int(note.rpartition("=")[2] or 0)

    assert seen == rows


def test_a_line_that_is_too_long_is_cut_and_the_next_can_be_read(folder: Path, read: Ask) -> None:
    (folder / "wide.txt").write_text("first\n" + "x" * 50_000 + "\nlast")

    assert read("wide.txt") == "first\n… lines 1 to 1 of 3; go on with start=2"
    _, cut, more = read("wide.txt", 2).split("\n")
    assert cut == "… line 2 is cut here"
    assert more == "… lines 2 to 2 of 3; go on with start=3"
    assert read("wide.txt", 3) == "last"


def test_a_byte_order_mark_and_an_empty_file_are_fine(folder: Path, read: Ask) -> None:
    (folder / "mark.txt").write_bytes(b"\xef\xbb\xbfalpha\r\n")
    (folder / "empty.txt").touch()

    assert read("mark.txt") == "alpha"
    assert read("empty.txt") == "nothing but an empty line"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "docs/../../secret.txt",
        "../folder2/secret.txt",
        "../folder/../secret.txt",
        "absolute",
        "relative",
        "chain",
        "away/secret.txt",
        "up/secret.txt",
        "docs/cycle/relative",
        "docs/cycle/up/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "~/secret.txt",
        "file:///etc/passwd",
    ],
)
def test_nothing_outside_the_folder_can_be_read(read: Ask, path: str) -> None:
    assert "Error" in read(path, fails=True)


def test_an_absolute_path_on_this_machine_leads_nowhere(tmp_path: Path, read: Ask) -> None:
    assert "Error" in read(str(tmp_path / "secret.txt"), fails=True)


def test_nothing_outside_the_folder_is_searched(search: Ask) -> None:
    assert search("secret") == "no match in 5 files"
    assert search("secret", "away/*") == "no match in 0 files"


def test_a_folder_swapped_for_a_link_leads_nowhere(folder: Path) -> None:
    search, read = MODULE.file_tools(folder)
    (folder / "docs").rename(folder / "was")
    (folder / "docs").symlink_to(folder.parent / "folder2")

    assert message(read, {"path": "docs/secret.txt"}).status == "error"
    assert SECRET not in message(search, {"pattern": "secret"}).text


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nope", "No such file"),
        ("docs", "Is a directory"),
        ("", "directory"),
        (".", "Is a directory"),
        ("loop", "symbolic links"),
        ("a\0b", "null"),
        ("\ud800", "surrogates"),
        ("x" * 10_000, "too long"),
        ("x/" * 10_000, "Error"),
        ("binary", "this file is binary"),
        ("latin", "can't decode byte 0xff"),
        ("huge", "this file is larger than 1 MB"),
        ("pipe", "Permission denied"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: Path, read: Ask, path: str, cause: str) -> None:
    (folder / "binary").write_bytes(b"a\0b")
    (folder / "latin").write_bytes(b"\xff")
    os.mkfifo(folder / "pipe")
    with (folder / "huge").open("wb") as huge:
        huge.truncate(2**40)

    assert cause in read(path, fails=True)


@pytest.mark.parametrize(
    ("start", "lines"), [(0, 1), (-1, 1), (3, 1), (10**30, 1), (1, 0), (1, -5)]
)
def test_lines_that_are_not_there_are_one_line(read: Ask, start: int, lines: int) -> None:
    assert read("a.txt", start, lines, fails=True).endswith(
        "this file has lines 1 to 2; ask for at least one of them"
    )


@settings(max_examples=40)
@given(st.text(max_size=30), st.text(max_size=30), st.booleans(), st.integers(), st.integers())
def test_any_arguments_get_an_answer(
    text: str, other: str, regex: bool, start: int, lines: int
) -> None:
    assert message(SEARCH_HERE, {"pattern": text, "glob": other, "regex": regex}).content
    assert message(READ_HERE, {"path": text, "start": start, "lines": lines}).content


@pytest.mark.parametrize("arguments", [{}, {"path": 3, "pattern": 3}, {"path": None}])
async def test_wrong_arguments_get_one_line(arguments: dict[str, Any]) -> None:
    assert SEARCH_HERE.invoke(arguments).startswith("search_files takes ")
    assert READ_HERE.invoke(arguments).startswith("read_file takes ")
    assert (await READ_HERE.ainvoke(arguments)).startswith("read_file takes ")


def test_one_pair_of_tools_serves_many_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(lambda _: SEARCH_HERE.invoke({"pattern": "ast"}), range(16)))

    assert len(answers) == 1


def test_the_tools_of_the_module_see_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    module: Any = module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    monkeypatch.chdir("/")

    assert [tool.name for tool in module.tools] == ["search_files", "read_file"]
    assert module.tools[1].invoke({"path": "note.txt"}) == "here"


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        MODULE.file_tools(tmp_path / "nowhere")
