"""``apr-agents serve``: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from apr_agents.cli.agent import quiet
from apr_agents.errors import InvalidOption, MissingExtra

KEY = "APR_API_KEY"


def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="'bundled' or 'local:DIRECTORY_OR_HUB_ID'."),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What clients call the model.",
            show_default="as it is called here, without 'local:'",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar=KEY,
            show_envvar=False,
            help=f"What clients must send. Better set in {KEY}: arguments can be seen by others.",
        ),
    ] = None,
    most_waiting: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            min=0,
            metavar="N",
            help="Answers that may wait beside those that run; what comes then gets a 429.",
        ),
    ] = 256,
    most_body: Annotated[
        float,
        typer.Option("--max-body", min=0.001, metavar="MIB", help="The largest request."),
    ] = 4.0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            "--dtype",
            help="Precision of the weights.",
            show_default="float32 on a CPU, as they were saved on a GPU",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            min=0,
            metavar="SECONDS",
            help="How long running requests may take to finish when the server is stopped.",
        ),
    ] = 30.0,
) -> None:
    """Serve a model over HTTP: /v1/completions, /v1/chat/completions, /v1/models, /metrics.

    The server listens to this machine only, unless it has a key. SIGTERM or Ctrl-C lets
    running requests finish; a second one does not.
    """
    kind, _, source = model.partition(":")
    if model != "bundled" and not (kind == "local" and source):
        raise InvalidOption("MODEL", model, "'bundled' or 'local:DIRECTORY_OR_HUB_ID'")
    if dtype is not None and not source:
        raise InvalidOption("--dtype", dtype, "left out for the bundled model")
    try:
        from apr_agents.server.app import ServerOptions, create_app
        from apr_agents.server.serving import Server, bind, is_public
    except ImportError as error:
        raise MissingExtra("serve", error.name or "fastapi") from error
    if is_public(host) and not api_key:
        expected = f"a loopback address such as 127.0.0.1, or go with a key in {KEY}"
        raise InvalidOption("--host", host, expected)
    options = ServerOptions(
        api_key=api_key or None,
        most_waiting=most_waiting,
        most_body_bytes=int(most_body * 2**20),
    )
    with bind(host, port) as listening, quiet():
        from apr_agents.backends import resolve
        from apr_agents.backends.local import LocalBackend
        from apr_agents.server.model import Model
        from apr_agents.tokens import end_ids

        backend = LocalBackend.load(source, dtype=dtype) if source else resolve(model)
        assert isinstance(backend, LocalBackend)
        config, generation = backend.model.config, backend.model.generation_config
        ends = end_ids(
            config.eos_token_id,
            generation.eos_token_id if generation is not None else None,
            backend.tokenizer.eos_token_id,
        )
        served = Model(name or source or model, backend.engine, backend.tokenizer, ends)
        address, bound = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address

        def announce() -> None:
            print(f"Serving {served.name} at http://{shown}:{bound}/v1", file=sys.stderr)

        app = create_app(served, options)
        Server(app, served, grace=grace, on_start=announce).run(sockets=[listening])
