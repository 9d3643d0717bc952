"""A run is trained by one process at a time."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

from bptt.errors import BpttWarning, ConfigError

if sys.platform != "win32":
    import fcntl


class Lock:
    """Held while it lives, at most until the process ends, however that is.

    On Windows there is none: a directory with an open file in it could not be moved.

    Args:
        run: the run's directory, in which ``.lock`` is made.
        name: what to call it in the message of an error.

    Raises:
        ConfigError: another one is held.
    """

    def __init__(self, run: Path, name: Path) -> None:
        self.release: Callable[[], object] = lambda: None
        if sys.platform == "win32":
            return
        descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        # Closing it lets go of the lock.
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConfigError(
                f"another process is training {name}: wait for it or stop it"
            ) from None
        except OSError as e:
            warnings.warn(
                f"{name} cannot be locked here ({e.strerror}): see that nothing else trains it",
                BpttWarning,
                stacklevel=2,
            )
