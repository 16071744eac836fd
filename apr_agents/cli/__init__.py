"""The command line: ``apr-agents solve | eval``."""
