"""The command line: parse, call, print."""

import os
import sys

from bptt._src.cli.interrupts import Interrupts
from bptt.errors import MissingExtraError, needs

__all__ = ["main"]


def main() -> None:
    """Run ``bptt``, as its script does; what the user did wrong is one line and a status."""
    interrupts = Interrupts()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Where another process has ended, that is reported in one line, and not by torch as well.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with interrupts.handled():
        # Not before a signal is heard, because it takes its time.
        try:
            with needs("lm"):
                from bptt._src.cli.command_line import run
        except MissingExtraError as error:
            if sys.argv[1:] == ["doctor"]:  # which looks for what is missing
                sys.exit(_doctor())
            sys.exit(f"error: {error}")
        status = run(interrupts)
    sys.exit(status)


def _doctor() -> int:
    """Do what ``bptt doctor`` does, without what parses and draws; return the status."""
    from bptt._src.doctor import examine

    found = examine()
    print(found)
    return int(found.state == "broken")
