"""``apr-agents train``: data sets, supervised fine-tuning, reinforcement."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apr_agents.cli.agent import quiet
from apr_agents.cli.configured import configured
from apr_agents.errors import InvalidOption, MissingExtra, UnusableFile
from apr_agents.training.config import GRPOConfig, SFTConfig

if TYPE_CHECKING:
    from apr_agents.training.sources import Harvest

MOST_TOLD = 20
"""What was left out is named one by one, up to so many."""

train = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
data = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

TaskOption = Annotated[
    str, typer.Option("--task", metavar="NAME", help="Where the problems are from, as for eval.")
]
CountOption = Annotated[int, typer.Option("-n", min=1, metavar="N", help="How many problems.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Which problems are drawn.")]
BudgetsOption = Annotated[
    list[int],
    typer.Option(
        "--threads",
        min=0,
        metavar="N",
        help="Threads that a block may have; repeatable: the problems take them in turn.",
    ),
]
ProtocolOption = Annotated[
    str, typer.Option("--protocol", metavar="NAME", help="How the model says spawn and join.")
]
MergeOption = Annotated[str, typer.Option("--merge", metavar="NAME", help="What joins show.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the scripts go.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A JSON object each line.")]
BUDGETS = [0, 2, 4, 8]


@train.callback()
def main(context: typer.Context) -> None:
    """Teach a model when to think in parallel."""
    _or_help(context)


@data.callback()
def data_main(context: typer.Context) -> None:
    """Make data sets: scripts of runs that went well and whose answers are right."""
    _or_help(context)


def sft(config: SFTConfig) -> None:
    """Fine-tune a model on scripts; goes on with a run that was stopped."""
    with _training():
        from apr_agents.training.sft import sft

        sft(config, _tell)


def grpo(config: GRPOConfig) -> None:
    """Reinforce a model by P-GRPO; goes on with a run that was stopped."""
    with _training():
        from apr_agents.training.pgrpo import grpo

        grpo(config, _tell)


train.command("sft")(configured(SFTConfig, sft))
train.command("grpo")(configured(GRPOConfig, grpo))
train.add_typer(data, name="data")


@data.command()
def teach(
    task: TaskOption,
    out: OutOption,
    count: CountOption = 1000,
    seed: SeedOption = 0,
    threads: BudgetsOption = BUDGETS,
    protocol: ProtocolOption = "threadweaver",
    merge: MergeOption = "conclusions",
) -> None:
    """What the teacher of a task shows."""
    with _training():
        from apr_agents.tasks.registry import resolve
        from apr_agents.training.sources import taught

        chosen = resolve(task)
        problems = chosen.problems(count, seed)
        _save(out, lambda: taught(chosen, problems, threads, protocol=protocol, merge=merge))


@data.command()
def sample(
    task: TaskOption,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="A model that continues text.")
    ],
    out: OutOption,
    count: CountOption = 100,
    seed: SeedOption = 0,
    threads: BudgetsOption = BUDGETS,
    protocol: ProtocolOption = "threadweaver",
    merge: MergeOption = "conclusions",
    samples: Annotated[int, typer.Option(min=1, help="Runs of each problem.")] = 8,
    keep: Annotated[
        int,
        typer.Option(min=1, help="Right runs of each problem that are kept, the shortest first."),
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Of the model.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one thread.")] = 1024,
) -> None:
    """A model's own runs, those that are right: self-training."""
    with _training():
        from apr_agents.backends import resolve as resolve_model
        from apr_agents.backends.base import Backend
        from apr_agents.tasks.registry import resolve
        from apr_agents.training.sources import sampled

        chosen, backend = resolve(task), resolve_model(model)
        if not isinstance(backend, Backend):
            raise InvalidOption("--model", model, "one that continues text")

        def harvest() -> Harvest:
            return sampled(
                chosen,
                chosen.problems(count, seed),
                threads,
                backend,
                protocol=protocol,
                merge=merge,
                samples=samples,
                keep=keep,
                temperature=temperature,
                max_tokens=max_tokens,
            )

        _save(out, harvest)


@data.command()
def collect(file: FileArgument, out: OutOption) -> None:
    """Recorded runs: lines of "question", "answer" (the right one) and "trajectory"."""
    with _training():
        from apr_agents.training.sources import recorded

        _save(out, lambda: recorded(file))


@data.command()
def convert(
    file: FileArgument,
    out: OutOption,
    style: Annotated[
        str, typer.Option("--from", metavar="NAME", help="The protocol of the traces.")
    ],
    protocol: ProtocolOption = "threadweaver",
    merge: MergeOption = "full",
) -> None:
    """Written traces: lines of "question", "answer" and "trace", threads and joins included."""
    with _training():
        from apr_agents.training.scripts import text_protocol
        from apr_agents.training.sources import converted

        source, target = text_protocol(style), text_protocol(protocol)
        _save(out, lambda: converted(file, source, target, merge=merge))


@data.command()
def rewrite(
    file: FileArgument,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="The model that rewrites; as for solve.")
    ],
    out: OutOption,
    stages: Annotated[
        Path, typer.Option("--stages", metavar="DIRECTORY", help="Keeps what each stage has done.")
    ],
    protocol: ProtocolOption = "threadweaver",
    merge: MergeOption = "full",
) -> None:
    """Sequential traces, rewritten by a model in stages; goes on where it was stopped."""
    with _training():
        from apr_agents.training.rewriting import rewritten
        from apr_agents.training.scripts import text_protocol

        target = text_protocol(protocol)
        _save(out, lambda: rewritten(file, stages, model, target, merge=merge))


@data.command()
def schema() -> None:
    """Print the JSON schema of a line of a data set."""
    from apr_agents.training.scripts import Script

    print(json.dumps(Script.model_json_schema(), indent=2))


@contextmanager
def _training() -> Iterator[None]:
    """Keeps libraries quiet, and names the extra of a package that is missing."""
    with quiet():
        try:
            yield
        except MissingExtra:
            raise
        except ImportError as error:
            raise MissingExtra("train", error.name or "torch") from error


def _or_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _save(out: Path, make: Callable[[], Harvest]) -> None:
    try:
        with out.open("a"):  # find out before the work is done
            pass
    except OSError as error:
        raise UnusableFile(str(out), error.strerror or "it cannot be written") from error
    harvest = make()
    harvest.save(out)
    for why in harvest.left_out[:MOST_TOLD]:
        _tell(f"Left out: {why}")
    if (more := len(harvest.left_out) - MOST_TOLD) > 0:
        _tell(f"Left out: {more} more")
    print(f"{len(harvest.scripts)} scripts are in {out}.")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
