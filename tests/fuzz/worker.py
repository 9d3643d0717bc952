"""A process for random cases, which may die; a death, an error or a hang names its seed."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def fuzz(kind, first, count, environment=None, seconds=120):
    """Run cases of a kind in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.cases", kind, str(first), str(count)]
    environment = dict(environment or os.environ)
    path = (environment.get("PYTHONPATH"), str(TESTS))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, errors = process.communicate(timeout=seconds + count)
        died = f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        died = "it hangs"
    lines = out.splitlines()
    last = lines[-1] if lines else "none"
    assert process.returncode == 0, f"{kind}, seed {last}: {died}: {errors[-3000:]}"
    assert sum(line.endswith("ok") for line in lines) == count
