"""Commands in forks of the test's process: as quick as in it, and free to hang, die or be killed.

What is imported already is shared, so a case costs some hundredths of a second. A case that goes on
is interrupted, as by Ctrl-C; one that does not end then is killed, and hangs.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

MOST_MEMORY = 3 << 30  # bytes that a command may take beside what is there already
STREAMS = [(0, "r"), (1, "w"), (2, "w")]
BUG = 99  # the status of a command that ended in an exception


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int  # negative where a signal ended it
    out: str
    err: str
    interrupted: bool  # it was still at work

    @property
    def fault(self) -> str | None:
        """What no command may do."""
        if self.status == BUG or "Traceback" in self.err:
            return f"a traceback: {self.err[-1500:]}"
        if self.status < 0:
            return f"ended by signal {-self.status}"
        complaints = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        if self.status in (130, 143):
            complaints = complaints or self.out.splitlines()[-1:]
        if self.status and len(complaints) != 1:
            return f"status {self.status} with {len(complaints)} lines: {self.err[-1500:]!r}"
        if not self.status and complaints:
            return f"status 0, and {complaints}"
        shown = self.out + self.err
        hidden = [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
        return f"control characters {hidden[:3]!r} in {shown[-500:]!r}" if hidden else None


def command(
    *arguments: object,
    where: Path,
    seconds: float = 90.0,
    signal_after: tuple[int, float] | None = None,
    setup=None,
) -> Ended:
    """Run ``bptt`` with these arguments, bytes among them as they are.

    After ``seconds``, or where ``signal_after`` says so, it is sent a signal.
    """
    given = [os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in arguments]
    files = [where / f".{name}" for name in ("out", "err")]
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(given, where, files, setup, is_ready)
    os.close(is_ready)
    os.read(ready, 1)  # the time counts from where the command begins
    os.close(ready)
    number, after = signal_after or (signal.SIGINT, seconds)
    status = _wait(pid, after)
    interrupted = status is None
    if interrupted:
        os.kill(pid, number)
        status = _wait(pid, 120.0)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"bptt {given} hangs")
    out, err = (f.read_text(encoding="utf-8", errors="surrogateescape") for f in files)
    for f in files:
        f.unlink()
    return Ended(os.waitstatus_to_exitcode(status), out, err, interrupted)


def _wait(pid: int, seconds: float) -> int | None:
    end, pause = time.monotonic() + seconds, 0.0005
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
        pause = min(pause * 1.3, 0.02)
    return None


def _child(given: list[str], where: Path, files: list[Path], setup, is_ready: int) -> None:
    status = BUG
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # until the command hears them
        os.chdir(where)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for descriptor, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        streams = [os.fdopen(n, mode, encoding="utf-8", closefd=False) for n, mode in STREAMS]
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.argv = ["bptt", *given]
        if setup is not None:
            setup()
        from bptt._src.cli import main
        from bptt.errors import BpttWarning

        warnings.filterwarnings("default", category=BpttWarning)  # and not raised
        # A signal may come just when Python has opened a module's file, and drops it open. That is
        # said only where warnings are errors, as in tests.
        warnings.filterwarnings("ignore", "unclosed file .*[.]pyc'", ResourceWarning)
        os.write(is_ready, b"!")
        os.close(is_ready)
        try:
            main()
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
