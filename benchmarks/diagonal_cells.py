"""Time layers whose units see each other at no step, against PyTorch, and their online gradient.

    python benchmarks/diagonal_cells.py [THREADS]

Forward and backward with all gradients, float32; all take turns, printed are medians in
milliseconds. First a minimal GRU: ours, the same in plain PyTorch by a parallel scan in logarithms
(F. A. Heinsen, arXiv:2311.06281; as the paper of the minimal GRU proposes it), and torch.nn's GRU,
which has a recurrent matrix. Then the same as gates in torch for all steps at once and bptt.scan,
for one sequence of few units. Then `credit="online"` against truncation at the same chunks. Then
bptt.scan itself. Last a million steps online, and the memory of the process before and after.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

import bptt

ROUNDS = 9
SHAPES = [(1000, 64, 10, 100), (10_000, 1, 10, 100), (100_000, 1, 10, 100)]
FEW_UNITS = [(2000, 1), (2000, 8), (2000, 64), (10_000, 2), (10_000, 16), (10_000, 100)]
CHUNKS = [(1, 1, 10, 100), (100, 1, 10, 100), (100, 16, 10, 100), (1000, 1, 10, 100)]
SCANS = [(10_000, 100), (1_000_000, 1), (1_000_000, 2), (1000, 6400)]


class InLogarithms(nn.Module):
    """A minimal GRU whose candidate is positive, so that all of it has a logarithm."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate, n = self.linear(x).chunk(2, -1)
        log_z, log_kept = -softplus(-gate), -softplus(gate)
        log_n = torch.where(n >= 0, (torch.relu(n) + 0.5).log(), -softplus(-n))
        log_h_0 = torch.full_like(log_n[:1], 0.5).log()
        kept = pad(log_kept, (0, 0, 0, 0, 1, 0)).cumsum(0)
        sums = torch.logcumsumexp(torch.cat([log_h_0, log_z + log_n]) - kept, 0)
        return (kept + sums).exp()[1:]


def medians(steps: list[Callable[[], object]]) -> list[float]:
    """Let them take turns."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(ROUNDS + 1):
        for step, found in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            if number:  # the first round traces and warms up
                found.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(found) for found in times]


def training(module: nn.Module, run: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a training step."""

    def step() -> None:
        module.zero_grad()
        run().sum().backward()

    return step


def compare_layers() -> None:
    """Print the layers' times."""
    print(
        f"{'T/B/I/H':20} {'ours':>8} {'in logs':>8} {'nn.GRU':>8} {'logs/ours':>10} {'GRU/ours':>9}"
    )
    for steps, batch, inputs, hidden in SHAPES:
        x = torch.randn(steps, batch, inputs)
        ours = bptt.Recurrent(bptt.cells.MIN_GRU, inputs, hidden)
        logs, gru = InLogarithms(inputs, hidden), nn.GRU(inputs, hidden)
        a, b, c = medians(
            [
                training(ours, lambda: ours(x)[0]),  # noqa: B023
                training(logs, lambda: logs(x)),  # noqa: B023
                training(gru, lambda: gru(x)[0]),  # noqa: B023
            ]
        )
        sizes = f"{steps}/{batch}/{inputs}/{hidden}"
        print(f"{sizes:20} {a:8.2f} {b:8.2f} {c:8.2f} {b / a:10.1f} {c / a:9.1f}", flush=True)


class ByScan(nn.Module):
    """The minimal GRU of a layer: its gates for all steps at once, and a scan."""

    def __init__(self, layer: bptt.Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        gates = nn.functional.linear(x, self.layer.weight_ih_l0, self.layer.bias_ih_l0)
        z, n = gates.chunk(2, -1)
        z = torch.sigmoid(z)
        return bptt.scan(1 - z, z * n), None


def without_gradients(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a pass forward."""

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def compare_with_scan() -> None:
    """Print what a scan takes of the time of a layer, forward alone and with all gradients."""
    print(f"\n{'T/B/I/H':20} {'inference':>10} {'training':>10}   by a scan / step by step")
    for steps, hidden in FEW_UNITS:
        x = torch.randn(steps, 1, 10)
        layer = bptt.Recurrent(bptt.cells.MIN_GRU, 10, hidden)
        scan = ByScan(layer)
        times = medians(
            [
                *(without_gradients(m, x) for m in (layer, scan)),
                *(training(m, lambda m=m: m(x)[0]) for m in (layer, scan)),  # noqa: B023
            ]
        )
        sizes = f"{steps}/1/10/{hidden}"
        a, b, c, d = times
        print(f"{sizes:20} {b / a:10.2f} {d / c:10.2f}", flush=True)


def compare_online() -> None:
    """Print what a chunk takes with the past and without it."""
    print(f"\n{'chunk, T/B/I/H':20} {'cell':10} {'cut':>8} {'online':>8} {'online/cut':>11}")
    for steps, batch, inputs, hidden in CHUNKS:
        x = torch.randn(steps, batch, inputs)
        for cell in (bptt.cells.MIN_GRU, bptt.cells.MIN_LSTM, bptt.cells.LRU):
            network = bptt.Recurrent(cell, inputs, hidden)
            online = Online(network, x)
            cut, past = medians([training(network, lambda: network(x)[0]), online])  # noqa: B023
            sizes = f"{steps}/{batch}/{inputs}/{hidden}"
            print(
                f"{sizes:20} {cell.name:10} {cut:8.3f} {past:8.3f} {past / cut:11.2f}", flush=True
            )


class Online:
    """Training steps along a stream."""

    def __init__(self, network: bptt.Recurrent, x: Tensor) -> None:
        self.network, self.x, self.state = network, x, None

    def __call__(self) -> None:
        self.network.zero_grad()
        y, self.state = self.network(self.x, self.state, credit="online")
        y.sum().backward()


def compare_scans() -> None:
    """Print the time of a scan alone."""
    print(f"\n{'scan, T/C':20} {'ms':>8}")
    for steps, columns in SCANS:
        a, b = torch.rand(steps, columns), torch.randn(steps, columns)
        (found,) = medians([lambda: bptt.scan(a, b)])  # noqa: B023
        print(f"{f'{steps}/{columns}':20} {found:8.2f}", flush=True)


def run_a_million() -> None:
    """Print the time and the memory of a million steps."""
    online = Online(bptt.Recurrent(bptt.cells.LRU, 10, 100), torch.randn(1000, 1, 10))
    for _ in range(10):
        online()
    before, began = resident(), time.perf_counter()
    for _ in range(1000):
        online()
    seconds, more = time.perf_counter() - began, resident() - before
    print(f"\n1000000 steps of an LRU online: {seconds:.1f} s, {more / 2**20:+.1f} MiB")


def resident() -> int:
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print all."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"{bptt.kernels.backend()}; torch {torch.__version__}")
    compare_layers()
    compare_with_scan()
    compare_online()
    compare_scans()
    run_a_million()


if __name__ == "__main__":
    main()
