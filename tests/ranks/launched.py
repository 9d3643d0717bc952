"""Processes started as users start them, by torchrun, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def torchrun(processes: int, *arguments: str, restarts: int = 0, **options) -> list[str]:
    """The command line that starts so many processes of a module or a script."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "--max-restarts", str(restarts)),
        *("--monitor-interval", "0.1"),
        *arguments,
    ]


def environment(**more: str) -> dict[str, str]:
    """One thread for each process, and no trace of a job that this one may be part of."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), **more}


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
