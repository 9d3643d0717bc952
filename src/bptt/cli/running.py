"""What commands that run for long share: signals, and a directory for what they write."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType


class Signals:
    """The first Ctrl-C or SIGTERM is noted, to be acted on after the update; a second is final."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> Signals:
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"

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
