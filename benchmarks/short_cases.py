"""What truncation cannot see can still be learnt from shorter cases.

One of eight symbols is shown, and asked for some steps later. The credit reaches at most 20 steps
back. A network trained on delays of 30 alone stays at chance; one trained on delays of 1 to 30 is
right at 30 too, because whatever keeps a symbol for 15 steps keeps it for 30.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

import bptt

DELAY, SYMBOLS, UPDATES = 30, 8, 1500


def batch(delay: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A symbol at the first step, and a sign at the last that asks for it."""
    symbol = torch.randint(SYMBOLS, (size,))
    x = torch.zeros(delay + 1, size, SYMBOLS + 1)
    x[0, torch.arange(size), symbol] = x[delay, :, SYMBOLS] = 1
    return x, symbol


def accuracy(shortest: int, seed: int) -> float:
    """Train on delays from the shortest on; return the share of right answers at the longest."""
    torch.manual_seed(seed)
    rnn, readout = bptt.LSTM(SYMBOLS + 1, 32), torch.nn.Linear(32, SYMBOLS)
    parameters = [*rnn.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(UPDATES):
        x, symbol = batch(int(torch.randint(shortest, DELAY + 1, ())))
        optimizer.zero_grad()
        y, _ = rnn(x, credit=bptt.Truncated(every=10, reach=20))
        cross_entropy(readout(y[-1]), symbol).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        x, symbol = batch(DELAY, 512)
        return float((readout(rnn(x)[0][-1]).argmax(1) == symbol).float().mean())


if __name__ == "__main__":
    for seed in range(2):
        for shortest, what in ((1, f"delays of 1 to {DELAY}"), (DELAY, f"delays of {DELAY} alone")):
            print(f"seed {seed}, {what}: {accuracy(shortest, seed):.0%} right at {DELAY}")
