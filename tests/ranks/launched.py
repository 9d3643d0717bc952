"""Jobs of several processes: started by torchrun, as users do, or quickly, as forks of the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cli import forked

import bptt

HERE = Path(__file__).parent
PATH = os.pathsep.join(map(str, (HERE.parent, Path(bptt.__file__).parents[1])))
"""Of the tests, and of the bptt that they test."""
OF_A_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torchrun(processes: int, *arguments: str, restarts: int = 0) -> list[str]:
    """The command line that starts so many processes of a module or a script."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "--max-restarts", str(restarts)),
        *("--monitor-interval", "0.1"),
        *arguments,
    ]


def environment(**more: str) -> dict[str, str]:
    """One thread for each process, and no trace of a job that this one may be part of."""
    kept = {k: v for k, v in os.environ.items() if k not in OF_A_JOB}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH, **more}


def run(command: list[str], *, cwd: Path, timeout: float = 240, **more: str):
    """Run to the end; what is printed is captured."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Forked:
    """``bptt`` with these arguments as a job of forks, each with the environment of its rank.

    What is imported is shared, so that it costs a second where torchrun costs many. There is no
    torchrun that ends the others where one has failed.
    """

    def __init__(
        self, where: Path, *arguments: str, size: int = 2, setup=None, **more: str
    ) -> None:
        self.where, port = where, _unused_port()
        self.files = [[where / f".{rank}.{n}" for n in ("out", "err")] for rank in range(size)]
        self.status: list[int | None] = [None] * size
        self.pids = []
        for rank in range(size):
            values = (rank, size, rank, size, "127.0.0.1", port)
            given = {**dict(zip(OF_A_JOB, map(str, values), strict=True)), **more}

            def prepare(given=given, rank=rank):
                os.environ.update(given, OMP_NUM_THREADS="1")
                if setup is not None:
                    setup(rank)

            ready, is_ready = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(ready)
                forked._child(list(arguments), where, self.files[rank], prepare, is_ready)
            os.close(is_ready)
            os.read(ready, 1)  # it has what was prepared for it
            os.close(ready)
            self.pids.append(pid)

    def wait(self, seconds: float = 60.0) -> Forked:
        """Wait until all have ended; kill those that have not by then, and fail."""
        until = time.monotonic() + seconds
        while None in self.status and time.monotonic() < until:
            self._look()
            time.sleep(0.005)
        hang = [rank for rank, status in enumerate(self.status) if status is None]
        self.end()
        assert not hang, f"rank {hang} hangs; the others: {self.err}"
        return self

    def _look(self) -> None:
        for rank, pid in enumerate(self.pids):
            if self.status[rank] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.status[rank] = os.waitstatus_to_exitcode(status)

    @property
    def ended(self) -> bool:
        """Whether one of them has ended."""
        self._look()
        return any(status is not None for status in self.status)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], number)

    def end(self) -> None:
        for rank, status in enumerate(self.status):
            if status is None:
                os.kill(self.pids[rank], signal.SIGKILL)
                os.waitpid(self.pids[rank], 0)

    @property
    def out(self) -> str:
        return "".join(out.read_text() for out, _ in self.files)

    @property
    def err(self) -> str:
        return "".join(err.read_text() for _, err in self.files)


def _unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
