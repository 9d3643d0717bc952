"""Random calls in a process that may die; a death, an error or a hang names its seed."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cases.py")


def fuzz(first, count):
    command = [sys.executable, "-W", "ignore", str(CASES), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count)
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "none"
    assert done.returncode == 0, f"seed {last}, exit {done.returncode}: {done.stderr[-2000:]}"
    assert sum(line.endswith("ok") for line in lines) == count


def test_some_hundreds():
    fuzz(0, 300)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 21000, 1000))
def test_thousands(first, survived):
    fuzz(first, 1000)
    survived("fuzzed calls against torch.nn and the twin", 1000)
