"""What an audit costs: the time of a run of 128 steps, with and without it.

    python benchmarks/audit_cost.py

One thread; each run and its audit in turn, the median of each; audits include the report.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import bptt

STEPS, INPUTS, TIMES = 128, 32, 7
Run = tuple[Callable[[], None], nn.Module]


def layer(batch: int, hidden: int, window: int) -> Run:
    """An LSTM, trained in windows."""
    rnn, head = nn.LSTM(INPUTS, hidden), nn.Linear(hidden, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()])

    def run() -> None:
        state = None
        for x in torch.randn(STEPS, batch, INPUTS).split(window):
            y, (h, c) = rnn(x, state)
            optimizer.zero_grad()
            head(y).square().mean().backward()
            optimizer.step()
            state = h.detach(), c.detach()

    return run, rnn


def cell(batch: int, hidden: int, window: int) -> Run:
    """An LSTM cell, called step by step."""
    rnn, head = nn.LSTMCell(INPUTS, hidden), nn.Linear(hidden, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()])

    def run() -> None:
        state = None
        for window_x in torch.randn(STEPS, batch, INPUTS).split(window):
            losses = []
            for x in window_x:
                state = rnn(x, state)
                losses.append(head(state[0]).square().mean())
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            state = tuple(s.detach() for s in state)

    return run, rnn


def held(batch: int, hidden: int, window: int) -> Run:
    """A GRU cell whose state is held where a mask is zero."""
    rnn = nn.GRUCell(INPUTS, hidden)
    mask = (torch.rand(STEPS, batch, 1, generator=torch.Generator().manual_seed(0)) < 0.9).float()

    def run() -> None:
        x, h = torch.randn(STEPS, batch, INPUTS), torch.zeros(batch, hidden)
        for first in range(0, STEPS, window):
            losses = []
            for t in range(first, first + window):
                h = mask[t] * rnn(x[t], h) + (1 - mask[t]) * h
                losses.append(h.square().mean())
            torch.stack(losses).mean().backward()
            h = h.detach()

    return run, rnn


def main() -> None:
    """Print a row for each kind of run."""
    torch.set_num_threads(1)
    print(f"{'':10}{'B':>5}{'H':>5}{'window':>8}{'run':>11}{'audit':>11}{'ratio':>8}")
    sizes = [(4, 20, 16), (16, 128, 16), (16, 128, 128), (16, 512, 32), (128, 64, 128)]
    for name, make in (("LSTM", layer), ("LSTMCell", cell), ("held", held)):
        for batch, hidden, window in sizes:
            run, module = make(batch, hidden, window)
            alone, audited = [], []
            for _ in range(TIMES + 1):
                start = time.perf_counter()
                run()
                between = time.perf_counter()
                bptt.audit(run, module)
                alone.append(between - start)
                audited.append(time.perf_counter() - between)
            a, b = median(alone[1:]), median(audited[1:])
            row = f"{name:10}{batch:5}{hidden:5}{window:8}{1e3 * a:8.1f} ms{1e3 * b:8.1f} ms"
            print(f"{row}{b / a:8.1f}")


if __name__ == "__main__":
    main()
