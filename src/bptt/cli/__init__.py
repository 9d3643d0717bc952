"""The command line: parse, call, print."""

from bptt.cli.main import main

__all__ = ["main"]
