"""The application: its commands, and how every mistake becomes one line and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from apr_agents.cli.bench import bench
from apr_agents.cli.evaluate import evaluate
from apr_agents.cli.serve import serve
from apr_agents.cli.solve import solve
from apr_agents.errors import AprError, BackendFailed, PromptTooLong

NO_ANSWER, BAD_USAGE, INTERRUPTED = 1, 2, 130
LONGEST_MESSAGE = 600


class OneLineErrors(TyperGroup):
    """Mistakes of the user and errors of this package end in one line on stderr."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets "?"
                stream.reconfigure(errors="replace")
        try:
            code = super().main(*args, **(options | {"standalone_mode": False}))
        except typer.TyperException as error:
            code = _report(error.format_message(), error.exit_code)
        except AprError as error:
            failed = isinstance(error, BackendFailed | PromptTooLong)
            code = _report(str(error), NO_ANSWER if failed else BAD_USAGE)
        except KeyboardInterrupt:
            code = INTERRUPTED
        sys.exit(code)


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
app.command("serve")(serve)
app.add_typer(bench, name="bench")


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
