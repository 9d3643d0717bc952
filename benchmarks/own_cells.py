"""Time training steps of one's own cells: a loop over their equations, and native kernels.

    python benchmarks/own_cells.py [THREADS]

Forward and backward with all gradients, float32. Each cell is given by its equations alone, the
LSTM among them; `native` is the LSTM that the kernel library has compiled in, of the same sizes.
All take turns; printed are medians in milliseconds, and the first call's time: tracing included.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import bptt
from bptt.cells import BY_NAME, Cell

ROUNDS = 15
SHAPES = [(35, 20, 200, 200), (100, 32, 128, 256)]


def leaky(x, h, state, units):
    """Rates of a leaky network, and what they are the positive part of."""
    v = 0.8 * state[1] + 0.2 * (x[0] + h[0])
    return torch.relu(v), v


def independent(x, h, state, units):
    """IndRNN: each unit sees its own state alone."""
    return (torch.relu(x[0] + units[0] * state[0]),)


def minimal(x, h, state, units):
    """minGRU: the gate and the candidate see the input alone."""
    z = torch.sigmoid(x[0])
    return (state[0] + z * (x[1] - state[0]),)


def exponential(x, h, state, units):
    """sLSTM: gates that are exponential, kept in range by a state of their own."""
    _, c, n, m = state
    i, f = x[0] + h[0], torch.nn.functional.logsigmoid(x[1] + h[1])
    after = torch.maximum(f + m, i)
    i, f = torch.exp(i - after), torch.exp(f + m - after)
    c, n = f * c + i * torch.tanh(x[2] + h[2]), f * n + i
    return torch.sigmoid(x[3] + h[3]) * c / n, c, n, after


CELLS = [
    *(
        dataclasses.replace(BY_NAME[name], name=f"own {name}", is_native=False, by_hand=None)
        for name in ("LSTM", "GRU", "MGU", "PEEPHOLE_LSTM")
    ),
    Cell("own leaky", 1, 1, leaky, states=2),
    Cell("own IndRNN", 1, 0, independent, units=1),
    Cell("own minGRU", 2, 0, minimal),
    Cell("own sLSTM", 4, 4, exponential, states=4),
]


def looped(network: bptt.Recurrent, x: Tensor) -> Tensor:
    """Run the equations step by step under autograd."""
    w, state = network._weights(0, False), ()
    for _ in range(network.cell.states):
        state += (x.new_zeros(x.shape[1], network.hidden_size),)
    outputs = []
    for x_t in x.unbind(0):
        state = network.cell.step(x_t, state, w)
        outputs.append(state[0])
    return torch.stack(outputs)


def training(network: bptt.Recurrent, x: Tensor, run: Callable[..., Tensor]) -> Callable[[], None]:
    """Return a training step."""

    def step() -> None:
        network.zero_grad()
        run(network, x).sum().backward()

    return step


def main() -> None:
    """Print the table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"{bptt.kernels.backend()}; torch {torch.__version__}")
    print(f"{'T/B/I/H':18} {'cell':18} {'loop':>8} {'own':>8} {'native':>8} {'loop/own':>9} "
          f"{'own/native':>11} {'first, s':>9}")  # fmt: skip
    for shape in SHAPES:
        steps, batch, inputs, hidden = shape
        x = torch.randn(steps, batch, inputs)
        lstm = bptt.Recurrent(BY_NAME["LSTM"], inputs, hidden)
        for cell in CELLS:
            network = bptt.Recurrent(cell, inputs, hidden)
            began = time.perf_counter()
            reason = bptt.kernels.not_native(network)
            if reason is not None:
                print(f"{cell.name}: {reason}")
                continue
            own = training(network, x, lambda n, x: n(x)[0])
            own()
            first = time.perf_counter() - began
            each = (
                training(network, x, looped), own, training(lstm, x, lambda n, x: n(x)[0]),
            )  # fmt: skip
            times: list[list[float]] = [[], [], []]
            for _ in range(ROUNDS):
                for step, found in zip(each, times, strict=True):
                    began = time.perf_counter()
                    step()
                    found.append(1e3 * (time.perf_counter() - began))
            loop, ours, native = map(statistics.median, times)
            sizes = "/".join(map(str, shape))
            print(f"{sizes:18} {cell.name:18} {loop:8.2f} {ours:8.2f} {native:8.2f} "
                  f"{loop / ours:9.2f} {ours / native:11.2f} {first:9.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
