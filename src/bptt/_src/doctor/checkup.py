"""Everything together, and the process in which what may fail is tried."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from bptt._src.doctor.diagnosis import Checkup, Diagnosis
from bptt._src.doctor.installed import look_at_packages
from bptt._src.doctor.machine import look_at_compiler, look_at_memory, look_at_processor
from bptt._src.doctor.tried import Tried, look_at_trial

TRIAL = "from bptt._src.doctor.trial import main; main()"
MOST_SECONDS = 120.0
"""After which the trial has failed; torch alone may take long from a slow disk."""


def examine() -> Checkup:
    """Look at all of it: some seconds, most of which torch takes to load.

    Returns:
        What was found; :attr:`Checkup.state` is ``"broken"`` if something that is installed does
        not work.
    """
    first, *packages = look_at_packages()
    processor = look_at_processor()
    tried = look_at_trial(run_trial())
    machine: list[Diagnosis] = [processor, look_at_memory(), look_at_compiler()]
    return Checkup([first, *tried, *machine, *packages])


def run_trial() -> Tried:
    """Run it in a new Python that finds the same modules."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {TRIAL}"
    late = None
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            late = f"it did not end in {MOST_SECONDS:g} seconds"
        finally:  # after Ctrl-C, too
            process.kill()
            process.wait()
    stages = _stages(out)
    return Tried(stages, None if "end" in stages else late or _why(process.returncode, errors))


def _stages(printed: bytes) -> dict[str, dict[str, Any]]:
    """Read the lines that are whole."""
    found = {}
    for line in printed.decode(errors="replace").splitlines():
        if line.startswith('{"stage": ') and line.endswith("}"):
            stage = json.loads(line)
            found[stage.pop("stage")] = stage
    return found


def _why(status: int, errors: bytes) -> str:
    """Return why a process has ended: the signal's name, or the last line that it left."""
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"the process ended with status {status}"
