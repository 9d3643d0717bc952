"""What commands that run for long share: signals, and a directory for what they write."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

_WATCHED = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _WATCHED[signal.SIGHUP] = "SIGHUP"


class Signals:
    """The first Ctrl-C, SIGTERM or SIGHUP is noted, to be acted on after the update.

    A second one is final. Under nohup, which ignores SIGHUP, it stays ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> Signals:
        heard = set(_WATCHED)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            heard.remove(signal.SIGHUP)
        self.before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
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
