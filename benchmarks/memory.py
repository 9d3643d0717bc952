"""Measure the memory and the time of the exact gradient over very long sequences. Linux only.

    python benchmarks/memory.py [--steps 200000] [--threads 1] [--budget 64MB] [--longest 1000000]

An LSTM(64, 128), one sequence, with given gradients of the outputs; gradients of inputs and weights
are computed. Every run is a separate process: a short warm-up pass, then the measured pass. The
inputs and the outputs' gradient are made beforehand. Two amounts of memory are printed:

    results   what the caller gets: the outputs, the inputs' and weights' gradients
    extra     the peak above the process's memory before the pass, less the results

First all four ways alternate over 20,000 steps, for their times; then each runs once over
``--steps``; then Recompute alone over 1,000 steps and ten times as many until ``--longest``. On a
busy machine, processor seconds mean more than wall-clock seconds. The hash is that of all
gradients: where it is the same, they have the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# The parent does not import torch: a process starts with its parent's peak as its own.

INPUTS, HIDDEN = 64, 128
WARM_UP, SHORT, ROUNDS = 300, 20_000, 3
KINDS = {
    "torch": "torch.nn.LSTM",
    "none": "bptt.LSTM, memory=None",
    "store": "bptt.LSTM, Store()",
    "recompute": "bptt.LSTM, Recompute",
}


def measure(kind: str, T: int, threads: int, budget: str) -> dict[str, Any]:
    """Run one way over T steps, in this process; short sequences several times, for the time."""
    import torch

    import bptt

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = (torch.nn if kind == "torch" else bptt).LSTM(INPUTS, HIDDEN)
    memory = {"store": bptt.Store(), "recompute": bptt.Recompute(budget)}.get(kind)

    def run(x: torch.Tensor, dy: torch.Tensor) -> tuple[float, float, int]:
        """Return a pass's seconds, its processor seconds, and the bytes of its outputs."""
        begun, busy = time.perf_counter(), time.process_time()
        y, _ = module(x) if kind == "torch" else bptt.unroll(module, x, memory=memory)
        y.backward(dy)
        return time.perf_counter() - begun, time.process_time() - busy, y.nbytes

    def forget(x: torch.Tensor) -> None:
        x.grad = None
        module.zero_grad()

    def given(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(steps, 1, INPUTS, requires_grad=True)
        return x, torch.randn(steps, 1, HIDDEN) / steps

    x, dy = given(WARM_UP)
    run(x, dy)
    forget(x)
    x, dy = given(T)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    passes = [run(x, dy)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gradients = [p.grad for p in (x, *module.parameters()) if p.grad is not None]
    found = hashlib.sha256(b"".join(g.numpy().tobytes() for g in gradients)).hexdigest()
    norm = float(torch.stack([g.double().norm() for g in gradients[1:]]).norm())
    while len(passes) * T < SHORT:
        forget(x)
        passes.append(run(x, dy))
    results = passes[0][2] + sum(g.nbytes for g in gradients)
    return {
        "seconds": statistics.median(p[0] for p in passes),
        "busy": statistics.median(p[1] for p in passes),
        "results": results / 1e6,
        "extra": (peak - before - results) / 1e6,
        "hash": found[:16],
        "norm": norm,
        "torch": torch.__version__,
    }


def apart(kind: str, T: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure in a separate process."""
    given = [kind, str(T), str(args.threads), args.budget]
    return json.loads(
        subprocess.run(
            [sys.executable, __file__, "--one", *given],
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    )


HEAD = (
    f"{'':36}{'s':>8}{'CPU s':>8}{'CPU µs/step':>13}{'results MB':>12}{'extra MB':>10}"
    f"{'|dW|':>11}  gradients"
)


def line(kind: str, T: int, found: dict[str, Any]) -> None:
    """Print one run."""
    print(
        f"{T:>10,}  {KINDS[kind]:24}{found['seconds']:8.2f}{found['busy']:8.2f}"
        f"{1e6 * found['busy'] / T:13.1f}{found['results']:12.0f}{found['extra']:10.1f}"
        f"{found['norm']:11.7f}  {found['hash']}",
        flush=True,
    )


def times(args: argparse.Namespace) -> None:
    """Alternate all ways over a short sequence: their medians, and the median of the ratios."""
    runs = [{kind: apart(kind, SHORT, args) for kind in KINDS} for _ in range(ROUNDS)]
    print(
        f"torch {runs[0]['torch']['torch']}, {args.threads} threads, {platform.machine()}, "
        f"Python {platform.python_version()}; LSTM({INPUTS}, {HIDDEN}), batch 1, "
        f"Recompute({args.budget!r})"
    )
    print(f"\n{HEAD}\nmedians of {ROUNDS} runs in turn")
    for kind in KINDS:
        middle = {**runs[0][kind]}
        for what in ("seconds", "busy", "extra"):
            middle[what] = statistics.median(r[kind][what] for r in runs)
        line(kind, SHORT, middle)
    for what, name in (("seconds", "time"), ("busy", "CPU time")):
        ratios = sorted(r["recompute"][what] / r["store"][what] for r in runs)
        print(
            f"{name} of Recompute / Store: {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def same(a: dict[str, Any], b: dict[str, Any]) -> str:
    return "the same bits" if a["hash"] == b["hash"] else "DIFFERENT BITS"


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--one"]:
        kind, T, threads, budget = sys.argv[2:]
        print(json.dumps(measure(kind, int(T), int(threads), budget)))
        return
    parser = argparse.ArgumentParser(description="Memory and time of long sequences.")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", default="64MB")
    parser.add_argument("--longest", type=int, default=1_000_000)
    args = parser.parse_args()
    times(args)
    print("\none run each")
    found = {}
    for kind in KINDS:
        found[kind] = apart(kind, args.steps, args)
        line(kind, args.steps, found[kind])
    print(f"gradients of Store and Recompute: {same(found['store'], found['recompute'])}")
    print("\nthe same budget, longer and longer; the shortest are medians of several passes")
    T = 1_000
    while args.longest >= T:
        line("recompute", T, apart("recompute", T, args))
        T *= 10


if __name__ == "__main__":
    main()
