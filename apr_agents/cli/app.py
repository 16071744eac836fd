"""The application: its commands, and how every mistake becomes one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from apr_agents.cli.bench import bench
from apr_agents.cli.evaluate import evaluate
from apr_agents.cli.protocols import protocols
from apr_agents.cli.serve import serve
from apr_agents.cli.simulate import simulate
from apr_agents.cli.solve import solve
from apr_agents.cli.tasks import tasks
from apr_agents.cli.trace import trace
from apr_agents.cli.train import train
from apr_agents.cli.ui import ui
from apr_agents.errors import AprError, BackendFailed, PromptTooLong, TrainingCollapsed

NO_ANSWER, BAD_USAGE, INTERRUPTED = 1, 2, 130
LONGEST_MESSAGE = 600

UNWRITABLE = {errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF}
"""What happens to a stdout whose disk is full or whose reader is gone."""


class OneLineErrors(TyperGroup):
    """Mistakes of the user and errors of this package end in one line on stderr."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets "?"
                stream.reconfigure(errors="replace")
        with redirect_stderr(Lossy(sys.stderr or io.StringIO())):  # there is none if it is closed
            try:
                code = super().main(*args, **(options | {"standalone_mode": False}))
            except typer.TyperException as error:
                code = _report(error.format_message(), error.exit_code)
            except AprError as error:
                failed = isinstance(error, BackendFailed | PromptTooLong | TrainingCollapsed)
                code = _report(str(error), NO_ANSWER if failed else BAD_USAGE)
            except KeyboardInterrupt:
                code = INTERRUPTED
            except OSError as error:
                if error.errno not in UNWRITABLE:
                    raise
                code = _report(f"Cannot write the output: {error.strerror}.", BAD_USAGE)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's exit would try again
        sys.exit(code)


class Lossy:
    """A stream that drops what it cannot write: what is told meanwhile must not end a run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _report(message: str, code: int) -> int:
    from apr_agents.trace.terminal import shortened

    print(f"Error: {shortened(message, LONGEST_MESSAGE)}", file=sys.stderr)
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"apr-agents {version('apr-agents')}")
        raise typer.Exit


app = typer.Typer(
    cls=OneLineErrors,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("solve")(solve)
app.command("eval")(evaluate)
app.command("simulate")(simulate)
app.command("tasks")(tasks)
app.command("serve")(serve)
app.command("ui")(ui)
app.command("protocols")(protocols)
app.add_typer(bench, name="bench")
app.add_typer(trace, name="trace")
app.add_typer(train, name="train")


@app.callback()
def main(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Adaptive parallel reasoning: the model decides when to split its thinking."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_USAGE)
