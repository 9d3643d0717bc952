"""Measure what torch.compile costs and gives, for bptt's LSTM and torch.nn's.

    python benchmarks/compiled.py [--threads 1] [--rounds 30]

A model of a linear layer, two LSTM layers of 128 units and a readout, batches of 16, one update
forwards and backwards. For each length the first call of a fresh compilation, less an eager call,
is the time to compile. torch.nn's LSTM breaks the graph (``fullgraph=True`` refuses it) unless
``torch._dynamo.config.allow_rnn`` is set; then every step is written out. Compiled once with
``dynamic=True``, the model is called with 20 lengths and batches, and the number of compilations is
counted. Then eager and compiled calls alternate: the median ratio of the two times.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bptt

INPUTS, HIDDEN, BATCH, LABELS = 64, 128, 16, 32
LENGTHS = (16, 256, 4096)
LONGEST_OF_TORCH = 16  # beyond, writing out every step takes minutes


class Model(nn.Module):
    def __init__(self, kind: type[nn.LSTM]) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN)
        self.recurrent = kind(HIDDEN, HIDDEN, 2)
        self.readout = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        y, _ = self.recurrent(torch.tanh(self.first(x)), **how)
        return self.readout(y)


def update(model: Callable[..., Tensor], x: Tensor, **how: Any) -> float:
    """Run forwards and backwards; return the seconds."""
    begun = time.perf_counter()
    model(x, **how).sum().backward()
    return time.perf_counter() - begun


def to_compile(kind: type[nn.LSTM], steps: int, allow: bool) -> str:
    torch._dynamo.reset()
    model, x = Model(kind), torch.randn(steps, BATCH, INPUTS)
    with torch._dynamo.config.patch(allow_rnn=allow):
        try:
            first = update(torch.compile(model, fullgraph=True), x)
        except torch._dynamo.exc.Unsupported:
            return "refused"
    return f"{first - update(model, x):.1f} s"


def compilations(model: nn.Module, **how: Any) -> int:
    """How often 20 lengths and batches are compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for n in range(20):
        update(compiled, torch.randn(17 + 9 * n, 2 + n, INPUTS), **how)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def ratio(model: nn.Module, x: Tensor, rounds: int, **how: Any) -> tuple[float, float]:
    """The eager call's milliseconds, and how many times as fast the compiled one is."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for _ in range(3):
        update(compiled, x, **how), update(model, x, **how)
    times = [(update(model, x, **how), update(compiled, x, **how)) for _ in range(rounds)]
    eager = statistics.median(a for a, _ in times)
    return 1000 * eager, statistics.median(a / b for a, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.compile(lambda x: x + 1)(torch.ones(2))  # the compiler itself is loaded once
    torch._inductor.config.force_disable_caches = True  # what an earlier run compiled
    print(f"torch {torch.__version__}, {bptt.kernels.backend()}\n")
    print(f"{'time to compile':32}" + "".join(f"{f'T = {T}':>12}" for T in LENGTHS))
    for name, kind, allow in (
        ("bptt.LSTM", bptt.LSTM, False),
        ("torch.nn.LSTM", nn.LSTM, False),
        ("torch.nn.LSTM, allow_rnn", nn.LSTM, True),
    ):
        row = [
            "not run" if allow and T > LONGEST_OF_TORCH else to_compile(kind, T, allow)
            for T in LENGTHS
        ]
        print(f"{name:32}" + "".join(f"{cell:>12}" for cell in row), flush=True)
    model = Model(bptt.LSTM)
    print(f"\ncompilations for 20 lengths and batches: {compilations(model)}\n")
    print(f"{'bptt.LSTM, compiled':44}{'eager':>10}{'faster by':>12}")
    starts = torch.rand(100, 32) < 0.02
    for name, shape, how in (
        ("T = 5, B = 4", (5, 4), {}),
        ("T = 35, B = 20", (35, 20), {}),
        ("T = 100, B = 32", (100, 32), {}),
        ("T = 100, B = 32, truncated:10", (100, 32), {"credit": "truncated:10"}),
        ("T = 100, B = 32, resets", (100, 32), {"resets": starts}),
    ):
        eager, times = ratio(model, torch.randn(*shape, INPUTS), options.rounds, **how)
        print(f"{name:44}{eager:>7.2f} ms{times:>12.2f}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
