"""Search and read the text files below one folder; nothing outside it.

Both tools run in Monty, a Python in a process of its own that sees the folder, read-only, as its
whole disk. So no path, link or pipe leads out, and no file or pattern is too much. (Nothing stops
Python's re, and the library regex, which has a timeout, takes 4 GB before that to compile
``(?:(?:(?:(?:a{50}){50}){50}){50}){50}``.)
"""

import os
from typing import Any

import pydantic_monty as monty
from langchain_core.tools import BaseTool, StructuredTool, ToolException

LIMITS = monty.ResourceLimits(
    max_feed_duration_secs=7, max_memory=256 * 2**20, max_suspensions=1_000_000
)
TEXT_OF = r"""
import os, re, time

def text_of(path):
    if os.stat(path).st_size > 1_000_000:
        raise ValueError("this file is larger than 1 MB")
    text = open(path).read()
    if "\0" in text:
        raise ValueError("this file is binary")
    return text.removeprefix("\ufeff").removesuffix("\n")
"""
SEARCH = r"""
line = re.compile(pattern if regex else re.escape(pattern))
signs = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
glob = re.sub(r"^\.?/", "", glob) if "/" in glob else "**/" + glob
glob = re.split(r"(\*\*/|\*\*|[*?])", glob)
file = re.compile("/" + "".join(signs.get(part) or re.escape(part) for part in glob))

found, searched, skipped, todo, end = [], 0, 0, ["/"], time.monotonic() + 5
while todo and len(found) <= 100 and time.monotonic() < end:
    path = todo.pop()
    try:
        if path.endswith("/"):
            entries = [e for e in os.scandir(path) if e.name[0] != "." and not e.is_symlink()]
            names = [path + e.name + "/" * e.is_dir() for e in entries if e.name.isprintable()]
            todo += sorted(names, reverse=True)
        elif file.fullmatch(path):
            for number, text in enumerate(text_of(path).split("\n"), 1):
                if len(found) <= 100 and line.search(text):
                    found.append(f"{path[1:]}:{number}: {text.strip()[:200]}")
            searched += 1
    except (OSError, ValueError, MemoryError):
        skipped += 1

if len(found) > 100:
    found[100:] = ["… more than 100 matches; narrow the pattern or the glob"]
elif todo:
    found.append("… stopped after 5 seconds; narrow the glob")
elif not found:
    found.append(f"no match in {searched} files")
if skipped:
    found.append(f"… {skipped} skipped: too large, binary, not UTF-8 or not allowed")
"\n".join(found)
"""
READ = r"""
rows = text_of(path).split("\n")
if lines < 1 or not 1 <= start <= len(rows):
    raise ValueError(f"this file has lines 1 to {len(rows)}; ask for at least one of them")
page = "\n".join(rows[start - 1 : start - 1 + lines])
if len(page) > 20_000:
    page = page[:20_000].rpartition("\n")[0] or page[:20_000]
last = start + page.count("\n")
if len(rows[last - 1]) > 20_000:
    page += f"\n… line {last} is cut here"
if last < len(rows):
    page += f"\n… lines {start} to {last} of {len(rows)}; go on with start={last + 1}"
page or "nothing but an empty line"
"""


def file_tools(root: str | os.PathLike[str]) -> list[BaseTool]:
    """``search_files`` and ``read_file`` for the files below ``root``, which must exist."""
    disk = monty.MountDir(
        host_path=os.fspath(root), virtual_path="/", mode="read-only", memory_usage_limit=2**24
    )

    def run(program: str, **inputs: Any) -> str:
        try:
            with monty.Monty() as pool, pool.checkout(limits=LIMITS) as session:
                return str(session.feed_run(TEXT_OF + program, mount=disk, inputs=inputs))
        except (monty.MontyError, OSError, RuntimeError) as error:
            raise ToolException(" ".join(str(error).split())) from None

    def search_files(pattern: str, glob: str = "**/*", regex: bool = False) -> str:
        """Find the lines of text files that contain a pattern, as path:line: text.

        The pattern is plain text, or with regex=true a regular expression. The glob chooses
        files, such as "*.py" or "docs/**/*.md". Hidden files and links are left out.
        """
        if not pattern or len(pattern) + len(glob) > 500:
            raise ToolException("give a pattern; it and the glob have at most 500 characters")
        return run(SEARCH, pattern=pattern, glob=glob, regex=regex)

    def read_file(path: str, start: int = 1, lines: int = 200) -> str:
        """Read some lines of a text file, from line start on. The first line is 1."""
        return run(READ, path=path, start=start, lines=lines)

    search: BaseTool = StructuredTool.from_function(search_files, handle_tool_error=True)
    search.handle_validation_error = 'search_files takes {"pattern": text} and glob, regex'
    read: BaseTool = StructuredTool.from_function(read_file, handle_tool_error=True)
    read.handle_validation_error = 'read_file takes {"path": text} and start, lines'
    return [search, read]


tools = file_tools(".")
