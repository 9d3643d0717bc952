"""Steps that bptt knows nothing of, with states of other forms."""

from __future__ import annotations

import torch
from torch import nn


class Named(nn.Module):
    """A step whose state is a dictionary with whole numbers in it; the batch comes first."""

    state_batch_dim = 0

    def __init__(self, inputs=2, hidden=4, dtype=torch.float64):
        super().__init__()
        self.into = nn.Linear(inputs, hidden, dtype=dtype)
        self.across = nn.Linear(hidden, hidden, dtype=dtype)
        self.hidden = hidden

    def forward(self, x, state=None):
        if state is None:
            zeros = x.new_zeros(x.shape[1], self.hidden)
            state = {"slow": zeros, "fast": zeros, "count": torch.tensor(0)}
            state["phase"] = torch.arange(x.shape[1])
        outputs = []
        for x_t in x:
            fast = torch.tanh(self.into(x_t) + 1.5 * self.across(state["fast"]) + state["slow"])
            odd = (state["phase"] + state["count"]) % 2
            slow = 0.9 * state["slow"] + 0.1 * fast.square() * (1 + odd[:, None])
            count, phase = state["count"] + 1, state["phase"] + 2
            state = {"slow": slow, "fast": fast, "count": count, "phase": phase}
            outputs.append(fast + slow)
        return torch.stack(outputs), state


class Linear(nn.Module):
    """h_t = A h_{t-1}, whatever comes in; the batch comes first."""

    state_batch_dim = 0

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x, state):
        outputs = []
        for _ in range(len(x)):
            state = state @ self.matrix.T
            outputs.append(state)
        return torch.stack(outputs), state


class Map(nn.Module):
    """Iterates a map of the state."""

    state_batch_dim = 0

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, state):
        for _ in range(len(x)):
            state = self.function(state)
        return x, state


class OnlyBackward(torch.autograd.Function):
    """A tanh without forward mode, of which only a first derivative is known."""

    @staticmethod
    def forward(ctx, a):
        h = a.tanh()
        ctx.save_for_backward(h)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d):
        (h,) = ctx.saved_tensors
        return d * (1 - h * h)
