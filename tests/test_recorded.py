"""The tests beside what torch's compilers and exporters write down, in processes of their own.

The checks of annotations that hold for all other tests wrap every function, and torch's compiler
would have to look through them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "recorded"
OPTIONS = ["-o", "addopts=--strict-markers --import-mode=importlib", "-p", "no:cacheprovider", "-q"]


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("test_*.py")))
def test_recorded(name):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, HERE / name],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
