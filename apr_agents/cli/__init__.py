"""The command line: ``apr-agents solve | eval | bench``.

Starts fast: what is heavy is imported once a command needs it.
"""

from apr_agents.cli.app import app

__all__ = ["app"]
