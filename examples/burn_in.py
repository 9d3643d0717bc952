"""Burn-in, as R2D2 does: run the first steps of a replayed sequence without a gradient.

A replayed sequence begins in a state that was stored under older weights, or in none at all.
Some steps refresh it; only the steps after them have losses.
"""

import torch
from torch import nn

import bptt

T, BURN, B = 40, 20, 8
torch.manual_seed(0)
lstm, theirs, head = bptt.LSTM(4, 32), nn.LSTM(4, 32), nn.Linear(32, 1)
theirs.load_state_dict(lstm.state_dict())
series = torch.randn(100 + T, B, 4)
with torch.no_grad():
    _, true = lstm(series[:100])  # the state with which the sequence really begins
    expected, _ = lstm(series[100:], true)
replayed = series[100:]
stored = tuple(torch.zeros_like(s) for s in true)  # what the replay memory has


def by_no_grad(rnn):
    """In torch.nn and in bptt: two calls."""
    with torch.no_grad():
        _, state = rnn(replayed[:BURN], stored)
    y, _ = rnn(replayed[BURN:], state)
    return y


def by_carry():
    """In bptt: one call, with the gradient cut before the first step that has a loss."""
    carry = torch.ones(T)
    carry[BURN] = 0
    y, _ = lstm(replayed, stored, carry=carry)
    return y[BURN:]


def gradient(rnn, y):
    return torch.autograd.grad(head(y).square().mean(), list(rnn.parameters()))


ours = gradient(lstm, by_no_grad(lstm))
torch.testing.assert_close(gradient(lstm, by_carry()), ours, rtol=1e-4, atol=1e-6)
torch.testing.assert_close(gradient(theirs, by_no_grad(theirs)), ours, rtol=1e-4, atol=1e-6)
with torch.no_grad():
    cold, _ = lstm(replayed[BURN:], stored)
    without = (cold - expected[BURN:])[0].norm().item()
    with_it = (by_no_grad(lstm) - expected[BURN:])[0].norm().item()
assert with_it < 0.01 * without
print(
    f"error of the first output that has a loss: {without:.3f} without burn-in, {with_it:.1e} with"
)
