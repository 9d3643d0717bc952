"""Ctrl-C and SIGTERM at any moment: one line, and the status that shells expect."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bptt._src.cli.running import rank_here

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handlers for the time of a command.

    Until :meth:`working` is called there is nothing to lose: a signal ends the process on the
    spot, because what is being imported could take an exception for something else. After that it
    raises KeyboardInterrupt, so that what was begun is put away; a second one does not wait.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_working = False

    def working(self) -> None:
        """From now on there is something to put away."""
        self._is_working = True

    @property
    def words(self) -> str:
        """What to say of the signal."""
        return "Terminated." if self.received == signal.SIGTERM else "Interrupted."

    @property
    def status(self) -> int:
        """What to leave with."""
        return 128 + (self.received or signal.SIGINT)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them, but for what is ignored: so a shell starts what is in the background."""
        before = {
            number: signal.signal(number, self._note)
            for number in NUMBERS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)
            if before.get(signal.SIGINT) is signal.default_int_handler:
                # Python is about to end, and would do so with a traceback.
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, number
        if not (self._is_working and is_first):
            if not rank_here():  # of several processes one says so
                os.write(2, f"{self.words}\n".encode())
            os._exit(self.status)
        raise KeyboardInterrupt

    def _again(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        """Where it was raised in what cannot raise, as a finalizer, raise it again soon."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, self._again)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(unraisable)
