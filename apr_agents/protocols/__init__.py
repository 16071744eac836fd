"""How a model says spawn and join. One variant per file; `resolve_protocol` knows their names."""

from __future__ import annotations

from apr_agents.errors import InvalidOption
from apr_agents.protocols.apr import APR
from apr_agents.protocols.base import TextProtocol
from apr_agents.protocols.multiverse import Multiverse
from apr_agents.protocols.npr import NPR
from apr_agents.protocols.parallel_r1 import ParallelR1
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.protocols.tool_calls import ToolCalls

PROTOCOLS: dict[str, type[TextProtocol] | type[ToolCalls]] = {
    protocol.name: protocol
    for protocol in (ThreadWeaver, APR, Multiverse, ParallelR1, NPR, ToolCalls)
}


def resolve_protocol(
    protocol: str | TextProtocol | ToolCalls | None,
) -> TextProtocol | ToolCalls | None:
    """The protocol that is called so; a protocol is returned as it is.

    Raises:
        InvalidOption: none is called so.
    """
    if not isinstance(protocol, str):
        return protocol
    if protocol not in PROTOCOLS:
        raise InvalidOption("protocol", protocol, f"one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]()
