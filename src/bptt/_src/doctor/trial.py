"""What is tried in a process of its own: loading torch and the kernels, checking and timing them.

It prints a line of JSON after each stage, so that whoever started it knows where it ended.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

CELLS = ("RNN", "GRU", "LSTM")
SHAPE = (35, 20, 200, 200)
"""Steps, sequences, inputs and hidden units of what is timed."""
SECONDS = 1.2
"""About how long the timing takes; longer if some step has not been timed yet, ..."""
MOST_SECONDS = 10.0
"""... but after this it gives up, as on a machine that is suddenly busy."""
BUSY = 0.5
"""The load per processor above which times mean nothing, and none is taken."""
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.1}
"""How far the kernels may be from plain PyTorch, relative to a tensor's largest entry."""

Step = Callable[[], Any]


def main() -> None:
    """Go through all stages."""
    load = load_of_others()
    tell("torch", of_torch())
    tell("bptt", of_bptt())
    tell("threads", of_threads())
    kernels = of_kernels()
    tell("kernels", kernels)
    if kernels.get("name") == "native":
        tell("checked", deviations(kernels["bf16"]))
    if "error" not in kernels:
        is_busy = load > BUSY * (os.cpu_count() or 1)
        has_library = "absent" not in kernels
        tell("timed", {"load": load} if is_busy else milliseconds(kernels["name"], has_library))
    tell("end", {})


def tell(stage: str, found: dict[str, Any]) -> None:
    """Print what a stage has found, at once."""
    print(json.dumps({"stage": stage, **found}), flush=True)


def load_of_others() -> float:
    """Return how many programs wanted a processor in the last minute; call it before any work."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def of_torch() -> dict[str, Any]:
    """Import torch; say which it is, and which devices it sees."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def of_bptt() -> dict[str, Any]:
    """Import all of bptt's core; where that fails, say in which line."""
    try:
        from bptt import LSTM  # noqa: F401
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{e.filename}, line {e.lineno}" if isinstance(e, SyntaxError) else ""
        what = e.msg if isinstance(e, SyntaxError) else str(e)
        tell("bptt", {"error": f"{type(e).__name__}: {what} ({where or _place(frame)})"})
        raise SystemExit(1) from None
    return {}


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}, line {frame.lineno}"


def of_threads() -> dict[str, Any]:
    """Count processors: all, those of the affinity mask, the quota's, and torch's threads."""
    import torch

    from bptt._src.engines import threads

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processors": os.cpu_count(),
        "affinity": affinity,
        "quota": threads.cpu_quota(),
        "usable": threads.processors(),
        "torch": torch.get_num_threads(),
    }


def of_kernels() -> dict[str, Any]:
    """Load the kernels that were chosen, and say what they are, or why there are none."""
    from bptt._src.engines.find import library_path
    from bptt.errors import KernelError
    from bptt.kernels import backend

    absent: dict[str, Any] = {}
    try:
        path = str(library_path())
    except FileNotFoundError as e:
        path, absent = None, {"absent": str(e)}
    try:
        b = backend()
    except KernelError as e:
        return {"error": str(e), "path": path, **absent}
    known = {"name": b.name, "isa": b.isa, "bf16": b.bf16, "threads": b.threads, "fewer": b.fewer}
    return {**known, "reason": b.reason, "path": path, **absent}


def deviations(bf16: bool) -> dict[str, float | None]:
    """Compare outputs and gradients with plain PyTorch's, for each type; None: not finite."""
    kinds = ["float64", "float32", *(["bfloat16"] if bf16 else [])]
    return {kind: max(_deviations(kind), key=_how_bad) for kind in kinds}


def _how_bad(deviation: float | None) -> float:
    return math.inf if deviation is None else deviation


def _deviations(kind: str) -> list[float | None]:
    import torch

    import bptt
    from bptt.kernels import use

    dtype = torch.float64 if kind == "float64" else torch.float32
    low = torch.autocast("cpu", torch.bfloat16) if kind == "bfloat16" else nullcontext()
    found: list[float | None] = []
    for cell in CELLS:
        torch.manual_seed(0)
        layer = getattr(bptt, cell)(7, 45, num_layers=2).to(dtype)
        x = torch.randn(13, 5, 7, dtype=dtype)
        with low:
            ours = _results(layer, x)
        with use("twin"):
            theirs = _results(layer, x)
        for a, b in zip(ours, theirs, strict=True):
            off = float((a - b).abs().max() / b.abs().max())
            found.append(off if math.isfinite(off) else None)
    return found


def _results(layer: Any, x: Any) -> list[Any]:
    """Return the outputs, and the gradients of the input and of all weights."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = layer(x)[0]
    (y.double() ** 2).sum().backward()
    return [y.detach().double(), x.grad, *(p.grad for p in layer.parameters())]


def milliseconds(in_use: str, has_library: bool) -> dict[str, Any]:
    """Time a training step of each cell: by what is in use, by the other engine, by torch.nn.

    They take turns, and the fastest step of each counts: other programs only make it slower. If one
    had no turn within ``MOST_SECONDS``, there are no times, and that limit is returned.
    """
    import torch

    import bptt
    from bptt.kernels import use

    T, B, inputs, H = SHAPE
    other = "twin" if in_use == "native" else "auto" if has_library else None
    x = torch.randn(T, B, inputs)
    steps: dict[tuple[str, str], tuple[Step, str | None]] = {}
    for cell in CELLS:
        ours = _step(getattr(bptt, cell)(inputs, H), x)
        steps[cell, in_use] = ours, None
        if other is not None:
            steps[cell, "twin" if other == "twin" else "native"] = ours, other
        steps[cell, "torch.nn"] = _step(getattr(torch.nn, cell)(inputs, H), x), None
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    start = time.perf_counter()
    while not all(seconds.values()) or time.perf_counter() - start < SECONDS:
        for key, (step, engine) in steps.items():
            if not seconds[key] and time.perf_counter() - start > MOST_SECONDS:
                return {"late": MOST_SECONDS}
            with nullcontext() if engine is None else use(engine):
                begun = time.perf_counter()
                step()
                seconds[key].append(time.perf_counter() - begun)
    fastest = {key: min(took) for key, took in seconds.items()}
    found: dict[str, Any] = {"milliseconds": {}, "ratios": {}}
    for (cell, engine), took in fastest.items():
        if engine == in_use:
            found["milliseconds"][cell] = 1e3 * took
        else:
            found["ratios"].setdefault(engine, {})[cell] = took / fastest[cell, in_use]
    return found | {"in_use": in_use, "shape": SHAPE}


def _step(layer: Any, x: Any) -> Step:
    def step() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_())[0].sum().backward()

    return step
