"""``apr-agents protocols``: how models say spawn and join, side by side."""

from __future__ import annotations


def protocols() -> None:
    """List the protocols: how a model asks for threads, what they see, what comes back."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from apr_agents.protocols import PROTOCOLS
    from apr_agents.protocols.base import TextProtocol

    table = Table(box=box.SIMPLE_HEAD, leading=1)
    table.add_column("name", no_wrap=True)
    for heading in ("the model says", "a thread sees", "what comes back", "needs", "paper"):
        table.add_column(heading, overflow="fold")
    for name, protocol in PROTOCOLS.items():
        kind = "a text model" if issubclass(protocol, TextProtocol) else "a chat model"
        says, sees, returns, paper = protocol.profile
        table.add_row(*map(Text, (name, says, sees, returns, kind, paper)))
    Console().print(table)
