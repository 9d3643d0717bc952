"""What has to be measured in a process of its own, where nothing has been loaded yet.

The functions here run there from their own text, so each brings all that it needs.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bptt.errors import BpttError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_fresh(function: Callable[..., Any], threads: int, *arguments: Any, **variables: str) -> Any:
    """Call a function of this file in a new Python process.

    Args:
        function: its result goes through JSON.
        threads: for the libraries that it loads.
        arguments: of the function; they are written out.
        variables: of its environment, besides those of this process.

    Raises:
        BpttError: the process failed.
    """
    call = f"import json\nprint(json.dumps({function.__name__}(*{arguments!r})))\n"
    text = "from __future__ import annotations\n" + inspect.getsource(function) + call
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        env=os.environ | dict.fromkeys(_THREADS, str(threads)) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BpttError(f"{function.__name__} failed in a process of its own: {last}")
    return json.loads(done.stdout)


def numpy_products(sizes: list[int], seconds: float) -> dict[str, float]:
    """Measure NumPy's products of square matrices, GFLOP/s by size: the fastest of each."""
    import time

    import numpy as np

    found = {}
    for size in sizes:
        a = np.random.default_rng(0).random((size, size), dtype=np.float32)
        least, spent, count = float("inf"), 0.0, 0
        while count < 3 or spent < seconds:
            begun = time.perf_counter()
            np.matmul(a, a)
            took = time.perf_counter() - begun
            least, spent, count = min(least, took), spent + took, count + 1
        found[str(size)] = 2 * size**3 / least / 1e9
    return found


def beginning(kernels: str) -> dict[str, float | None]:
    """Time, in milliseconds: loading the native library, a first training step, and later ones."""
    import statistics
    import time

    import torch

    import bptt
    from bptt._src.engines import kernel_library

    def milliseconds(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begun)

    def step() -> None:
        lstm(x)[0].sum().backward()

    load = milliseconds(kernel_library.library) if kernels == "native" else None
    x, lstm = torch.randn(20, 1, 100), bptt.LSTM(100, 100)
    first = milliseconds(step)
    return {
        "load": load,
        "first_call": first,
        "later_call": statistics.median(milliseconds(step) for _ in range(20)),
    }


def crowded(
    jobs: list[tuple[str, str]],
    processors: list[int],
    situation: dict[str, int],
    effort: dict[str, Any],
) -> Any:
    """Time layers on some processors only: see :mod:`bench.sharing`."""
    import os
    import signal

    os.sched_setaffinity(0, processors)  # before torch looks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends the run after it

    from bptt._src.bench.sharing import Situation, in_turns
    from bptt._src.bench.timing import Effort

    return in_turns(jobs, Situation(**situation), Effort(**effort))


def ranks(shape: dict[str, Any], effort: dict[str, Any]) -> Any:
    """Time a language model in one process and in two: see :mod:`bench.together`."""
    import json
    import signal
    import tempfile
    from pathlib import Path

    from torch.multiprocessing.spawn import spawn

    from bptt._src.bench.ranks import PROCESSES
    from bptt._src.bench.together import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends the run after it
    with tempfile.TemporaryDirectory() as directory:
        spawn(main, (directory, shape, effort), PROCESSES)
        return json.loads((Path(directory) / "found.json").read_text())


def memory(jobs: list[tuple[str, str]], effort: dict[str, Any]) -> Any:
    """Time layers with the memory that this process has: see :mod:`bench.memory`."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends the run after it

    from bptt._src.bench.faults import in_turns
    from bptt._src.bench.timing import Effort

    return in_turns(jobs, Effort(**effort))
