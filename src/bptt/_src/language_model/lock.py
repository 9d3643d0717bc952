"""A lock, so that a run is trained by one process at a time."""

from __future__ import annotations

import os
import platform
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

from bptt._src.atomic import named
from bptt.errors import BpttWarning, ConfigError

HAS_LOCKS = sys.platform != "win32"

if sys.platform != "win32":
    import fcntl


class Lock:
    """The lock of a run, held until it is released or the process ends, however that happens.

    On Windows nothing is locked, because a directory with an open file in it cannot be moved.

    Args:
        run: the run's directory, in which ``.lock`` is made.

    Raises:
        ConfigError: another process holds the lock.
        OSError: the file cannot be made, or is a symbolic link.
    """

    def __init__(self, run: Path) -> None:
        self.release: Callable[[], object] = lambda: None
        if sys.platform == "win32":
            return
        path = run / ".lock"
        while True:
            with named(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            # Closing it releases the lock.
            self.release = weakref.finalize(self, os.close, descriptor)
            self._take(descriptor, run)
            if _is_at(descriptor, path):
                return
            self.release()  # the previous holder has removed the file

    def sign(self, run: Path) -> None:
        """Note which job has made the run, so that torchrun can start it again."""
        job = _job()
        if job is not None:
            (run / ".lock").write_text(job)

    def _take(self, descriptor: int, run: Path) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConfigError(
                f"another process is training {run}: wait for it or stop it"
            ) from None
        except OSError as e:
            warnings.warn(
                f"{run} cannot be locked here ({e.strerror}): make sure nothing else trains it",
                BpttWarning,
                stacklevel=3,
            )


def was_made_by_this_job(run: Path) -> bool:
    """Whether torchrun has started this job again, and it has made the run."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    try:
        return (run / ".lock").read_text() == _job()
    except OSError:
        return False


def _job() -> str | None:
    """The job that torchrun has started, which is the same when it starts it again."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{name}, {os.getppid()} on {platform.node()}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
