"""Commands in processes of their own, none of which outlives the test that started it."""

from __future__ import annotations

import subprocess
import sys

_STARTED: list[subprocess.Popen] = []


def start(*arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Start ``bptt`` with these arguments."""
    return python("-m", "bptt", *arguments, stdin=stdin)


def python(*arguments: object, stdin: int = subprocess.DEVNULL, **options) -> subprocess.Popen:
    """Start this Python with these arguments."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    _STARTED.append(process)
    return process


def end() -> None:
    """Kill those that a test left behind, as one does that fails."""
    while _STARTED:
        process = _STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()
