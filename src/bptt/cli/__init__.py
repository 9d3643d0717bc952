"""The command line: parse, call, print."""

import sys

from bptt.cli.interrupts import Interrupts

__all__ = ["main"]


def main() -> None:
    """Run ``bptt``, as its script does; what the user did wrong is one line and a status."""
    interrupts = Interrupts()
    with interrupts.handled():
        # Not before a signal is heard, because it takes its time.
        from bptt.cli.command_line import run

        status = run(interrupts)
    sys.exit(status)
