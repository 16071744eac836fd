"""Untrusted Python, run by Monty: an interpreter in a process of its own, without the host."""

import ast
import re
from io import StringIO

import pydantic_monty as monty
from langchain_core.tools import BaseTool, StructuredTool, ToolException

MAX_CODE = 20_000  # characters
MAX_SHOWN = 4_000  # characters printed, and again of the last value
LIMITS: monty.ResourceLimits = {"max_feed_duration_secs": 5, "max_memory": 64 * 2**20}
# Repeatable, and never waiting: the limit on time does not count sleep.
POLICY: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}


def naming_the_last(code: str) -> str:
    """The code with its last statement, if that is an expression, assigned to ``__last__``."""
    lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # Most backslashes blanked, or the parser would warn of escapes such as "\d".
    blanked = re.sub(r"(\\[\\'\"\n])|\\", lambda found: found[1] or ".", "\n".join(lines))
    try:
        last = ast.parse(blanked).body[-1]
    except (SyntaxError, ValueError, RecursionError, MemoryError, IndexError):
        return code  # Monty says what is wrong, or knows syntax that this Python does not
    if isinstance(last, ast.Expr):
        line = lines[last.lineno - 1].encode()
        line = line[: last.col_offset] + b"__last__ = " + line[last.col_offset :]
        lines[last.lineno - 1] = line.decode()
    return "\n".join(lines)


def explained(error: Exception) -> str:
    """One line, with the line of the code if it is known."""
    if not isinstance(error, monty.MontySyntaxError | monty.MontyRuntimeError):
        return str(error)
    message = " ".join(error.display("type-msg")[:400].split())
    frames = error.traceback()
    return f"line {frames[-1].line}: {message}" if frames else message


def run_python(code: str) -> str:
    """Run Python code and return what it prints, then the value of its last expression.

    It has math, re, json, datetime, decimal, itertools, collections, random, functools and
    little else: no files, no network, no yield, no subclasses. It stops after 5 seconds, and
    the next run knows nothing of this one.
    """
    if len(code) > MAX_CODE:
        raise ToolException(f"the code is longer than {MAX_CODE} characters; make it shorter")
    printed = StringIO()

    def keep(stream: str, text: str) -> None:
        printed.write(text[: MAX_SHOWN + 1 - printed.tell()])

    def shown(last: str) -> str:
        texts = (printed.getvalue().rstrip("\n"), last)
        cut = (f"{t[:MAX_SHOWN]}\n… cut here" if len(t) > MAX_SHOWN else t for t in texts)
        return "\n".join(filter(None, cut))

    try:
        with monty.Monty() as pool, pool.checkout(limits=LIMITS, os_policy=POLICY) as session:
            session.feed_run("__last__ = None")
            step = session.feed_start(naming_the_last(code), print_callback=keep)
            while not isinstance(step, monty.MontyComplete):
                step = step.resume_auto()
            # Only text comes back. A set of 100 000 integers that hash alike, made a set
            # again here, would hold every thread of this process for a minute.
            last = f'"" if __last__ is None else f"{{__last__!r:.{MAX_SHOWN + 1}}}"'
            value: str = session.feed_run(last, print_callback=keep)
    except (monty.MontyError, OSError, RuntimeError) as error:
        raise ToolException(shown(explained(error))) from None
    return shown(value) or "nothing printed, no value; print it or end with an expression"


tools: list[BaseTool] = [StructuredTool.from_function(run_python, handle_tool_error=True)]
tools[0].handle_validation_error = 'run_python takes {"code": "print(12*7)"}'
