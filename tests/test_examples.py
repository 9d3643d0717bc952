"""The examples run, and show what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONGER = {"audit_a_loop.py", "several_processes.py"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # small networks, and tests beside each other
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_an_example_is_read_at_a_glance():
    long = {p.name for p in EXAMPLES if len(p.read_text().splitlines()) > 60}
    assert long == LONGER
