"""Random calls in a process that may die; a death, an error or a hang names its seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
KINDS = {
    "modules": "fuzzed calls of the modules against torch.nn and the twin",
    "credits": "fuzzed credits, carries, resets and memories against single steps of torch.nn",
    "readouts": "fuzzed readout losses against torch's and the twin's",
    "flows": "fuzzed gradient flows against autograd and the twin",
}


def fuzz(kind, first, count, environment=None):
    """Run cases of a kind in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.cases", kind, str(first), str(count)]
    environment = dict(environment or os.environ)
    path = (environment.get("PYTHONPATH"), str(TESTS))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, errors = process.communicate(timeout=120 + count)
        died = f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        died = "it hangs"
    lines = out.splitlines()
    last = lines[-1] if lines else "none"
    assert process.returncode == 0, f"{kind}, seed {last}: {died}: {errors[-3000:]}"
    assert sum(line.endswith("ok") for line in lines) == count


@pytest.mark.parametrize("kind", KINDS)
def test_some_hundreds(kind):
    fuzz(kind, 0, 100)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 21000, 1000))
def test_thousands(first, survived):
    for kind, count in {"modules": 400, "credits": 200, "readouts": 300, "flows": 100}.items():
        fuzz(kind, first, count)
        survived(KINDS[kind], count)
