"""Time training steps of one's own cells: a loop in Python, and native loops made of the cell.

    python benchmarks/own_cells.py [THREADS]

Forward and backward with all gradients, float32. Each cell is given by its equations alone, the
LSTM among them, in three ways: `loop` calls one step of the cell after the other in plain PyTorch;
`Cell` is bptt.Recurrent of the bptt.Cell; `fuse` is bptt.fuse of the step that the loop calls.
`native` is the LSTM that the kernel library has compiled in, of the same sizes. All take turns;
printed are medians in milliseconds, ratios, and the seconds that it takes to prepare a cell. On one
thread it is the processor's time, which depends less on what else runs on the machine.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.cells import BY_NAME, LayerNormLSTMCell

ROUNDS = 15
SHAPES = [(35, 20, 200, 200), (100, 32, 128, 256)]
CELLS = [
    *(
        dataclasses.replace(BY_NAME[name], name=f"own {name}", is_native=False, by_hand=None)
        for name in ("LSTM", "GRU", "MGU", "PEEPHOLE_LSTM")
    ),
    *(BY_NAME[name] for name in ("RATE", "INDRNN", "MIN_GRU", "SLSTM")),
]


class Step(nn.Module):
    """One step of a cell, with the weights of a network of it."""

    def __init__(self, network: bptt.Recurrent) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> Any:
        state = self.network.cell.step(x, state, self.network._weights(0, False))
        return state[0], state


def zeros(states: int, batch: int, hidden: int) -> tuple[Tensor, ...]:
    """Return a state."""
    return tuple(torch.zeros(batch, hidden) for _ in range(states))


def training(module: nn.Module, x: Tensor, state: Any) -> Callable[[], None]:
    """Return a training step."""

    def step() -> None:
        module.zero_grad()
        module(x, state)[0].sum().backward()

    return step


def now() -> float:
    """Return the time in seconds."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(steps: list[Callable[[], None]]) -> list[float]:
    """Return the median of each, in milliseconds; they take turns."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(ROUNDS):
        for step, found in zip(steps, times, strict=True):
            began = now()
            step()
            found.append(1e3 * (now() - began))
    return [statistics.median(found) for found in times]


def show(sizes: str, name: str, loop: float, own: float, fused: float, native: float,
         prepared: float) -> None:  # fmt: skip
    """Print a line; own is 0 where the cell is no Cell."""
    of_own = f"{own:8.2f} {loop / own:9.1f} {own / native:11.2f}" if own else " " * 30
    print(f"{sizes:16} {name:18} {loop:8.2f} {native:8.2f} {of_own} {fused:8.2f} "
          f"{loop / fused:9.1f} {fused / native:11.2f} {prepared:8.2f}", flush=True)  # fmt: skip


def main() -> None:
    """Print the table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"{bptt.kernels.backend()}; torch {torch.__version__}")
    print(f"{'T/B/I/H':16} {'cell':18} {'loop':>8} {'native':>8} {'Cell':>8} {'loop/Cell':>9} "
          f"{'Cell/native':>11} {'fuse':>8} {'loop/fuse':>9} {'fuse/native':>11} "
          f"{'prep., s':>8}")  # fmt: skip
    for shape in SHAPES:
        steps, batch, inputs, hidden = shape
        sizes, x = "/".join(map(str, shape)), torch.randn(steps, batch, inputs)
        lstm = training(bptt.LSTM(inputs, hidden), x, None)
        for cell in CELLS:
            network, state = bptt.Recurrent(cell, inputs, hidden), zeros(cell.states, batch, hidden)
            began = now()
            assert bptt.kernels.not_native(network) is None
            step = Step(network)
            fused = bptt.fuse(step, x[0], state)
            prepared = now() - began
            loop, own, ours, native = timed([
                training(bptt.Stepwise(step), x, state), training(network, x, None),
                training(fused, x, state), lstm,
            ])  # fmt: skip
            show(sizes, cell.name, loop, own, ours, native, prepared)
        state = zeros(2, batch, hidden)
        norms = LayerNormLSTMCell(inputs, hidden)
        began = now()
        fused = bptt.fuse(norms, x[0], state)
        prepared = now() - began
        each = [training(bptt.Stepwise(norms), x, state), training(fused, x, state), lstm]
        loop, ours, native = timed(each)
        show(sizes, "LayerNormLSTM", loop, 0.0, ours, native, prepared)


if __name__ == "__main__":
    main()
