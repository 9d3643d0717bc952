"""What commands that run for long share: signals, and a directory for what they write."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

_WATCHED = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _WATCHED[signal.SIGHUP] = "SIGHUP"


REPEATED = 3.0  # seconds in which torchrun may send a signal again that the terminal has sent


def rank_here() -> int:
    """Return the number of this process among those that torchrun has started; 0 if alone."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return int(rank) if rank.isdecimal() and size not in ("", "1") else 0


class Signals:
    """The first Ctrl-C, SIGTERM or SIGHUP is noted, to be acted on after the update.

    A second one is final, but for one that torchrun sends to its processes right after the first.
    Under nohup, which ignores SIGHUP, it stays ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.since = 0.0

    def __enter__(self) -> Signals:
        heard = set(_WATCHED)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            heard.remove(signal.SIGHUP)
        self.before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.since < REPEATED:
                return
            raise KeyboardInterrupt
        self.since = time.monotonic()
        self.received = _WATCHED[signal.Signals(number)]

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def first_free(within: Path, name: str) -> Path:
    """Make a directory of a name and the first free number; at once, so that no other takes it."""
    number = 1
    while True:
        path = within / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
