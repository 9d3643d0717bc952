"""An oracle for the audit: a module that carries the numbers of its steps, in values and gradients.

Its state is the sum of a unit vector for each step it has seen, so the state itself says what it
holds. Where a gradient of the user's loss arrives at step t, unit vector t goes back in its place:
what comes back at step s are the losses that credit it, with their weights, whatever the loop does
in between. The user's own gradients have to be smaller than ``SMALL``, and weights multiples of
``GRID``, by which the two are told apart.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

GRID = 2.0**-18
SMALL = 2.0**-26
STEP = 1000
"""The first feature of an input is its step divided by this."""


class Probe(nn.Module):
    """Takes and returns what a recurrent module of torch's does.

    Args:
        steps: how many steps there will be, at most.
        batch: the largest batch.
        parts: the number of tensors of the state.
        layers: their size in dimension 0; None: they are [B, H], as a cell's.
        returns: "sequence", (y [T, B, H], state); "cell", the state alone; "step", (y [B, H],
            state); "attribute", y [B, H], with the state in ``self.mem``.
        batch_first: as torch's.
    """

    def __init__(self, steps, batch, parts=1, layers=1, returns="sequence", batch_first=False):
        super().__init__()
        self.steps, self.batch, self.parts, self.layers = steps, batch, parts, layers
        self.returns, self.batch_first, self.mem = returns, batch_first, None
        self.theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.theta.register_hook(self._reached)
        self.size = steps * batch
        self.W = np.zeros((self.size, self.size))
        self.M = np.zeros((self.size, self.size), bool)
        self.passes = {}

    def credits(self, steps):
        """W[b, t, of, s]: how much of the loss of step t of sequence b step s of ``of`` gets."""
        shape = self.steps, self.batch, self.steps, self.batch
        return self.W.reshape(shape).transpose(1, 0, 3, 2)[:, :steps, :, :steps]

    def memories(self, steps):
        """M[b, t, of, s]: whether the state of sequence b after step t holds step s of ``of``."""
        shape = self.steps, self.batch, self.steps, self.batch
        return self.M.reshape(shape).transpose(1, 0, 3, 2)[:, :steps, :, :steps]

    def _reached(self, gradient):
        self.W += self.passes.pop(torch._C._current_graph_task_id(), 0)

    def forward(self, x, state=None):
        if self.returns == "attribute":
            state = self.mem if self.mem is not None and self.mem.dim() else None
        packed = isinstance(x, PackedSequence)
        values, lengths = pad_packed_sequence(x) if packed else (x, None)
        values = values.transpose(0, 1) if self.batch_first else values
        values = values.unsqueeze(0) if self.returns != "sequence" else values
        T, B = values.shape[:2]
        lengths = torch.full((B,), T) if lengths is None else lengths
        given = () if state is None else (state,) if torch.is_tensor(state) else tuple(state)
        shape = (B, self.size) if self.layers is None else (self.layers, B, self.size)
        y, *after = _Codes.apply(self, lengths.tolist(), shape, self.theta, values, *given)
        state = after[0] if self.parts == 1 else tuple(after)
        if self.returns == "cell":
            return state
        if self.returns == "sequence":
            if packed:
                return pack_padded_sequence(y, lengths, enforce_sorted=False), state
            return (y.transpose(0, 1) if self.batch_first else y), state
        self.mem = state if self.returns == "attribute" else None
        return y[0] if self.returns == "attribute" else (y[0], state)


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, probe, lengths, shape, theta, x, *given):
        T, B = x.shape[:2]
        steps = (x[..., 0].double() * STEP).round().long()
        numbers = steps * probe.batch + torch.arange(B)
        held = torch.zeros(B, probe.size, dtype=torch.float64)
        for part in given:
            held = _greatest(held, _by_row(part, shape))
        y = torch.zeros(T, B, probe.size, dtype=torch.float64)
        for t in range(T):
            for b in range(B):
                if t < lengths[b]:
                    held[b, numbers[t, b]] = 1
                    probe.M[numbers[t, b]] = (held[b] != 0).numpy()
                    y[t, b] = held[b]
        ctx.probe, ctx.lengths, ctx.numbers, ctx.shape = probe, lengths, numbers, shape
        ctx.inputs, ctx.given = x.shape, [part.shape for part in given]
        after = [held.expand(shape).clone() for _ in range(probe.parts)]
        return (y, *after)

    @staticmethod
    def backward(ctx, of_y, *of_state):
        probe, numbers = ctx.probe, ctx.numbers
        T, B = numbers.shape
        codes, came = _told_apart(of_y)
        at_end, came_at_end = torch.zeros(B, probe.size, dtype=torch.float64), False
        for gradient in of_state:
            code, came_here = _told_apart(_spread(gradient, ctx.shape))
            for layer in code:
                at_end = _greatest(at_end, layer)
            came_at_end = came_at_end | came_here.any(0)
        v, found = torch.zeros_like(at_end), np.zeros_like(probe.W)
        of_x = torch.zeros(ctx.inputs, dtype=torch.float64)
        for t in reversed(range(T)):
            for b in range(B):
                if t >= ctx.lengths[b]:
                    continue
                now, own = codes[t, b], came[t, b]
                if t == ctx.lengths[b] - 1:
                    now, own = _greatest(now, at_end[b]), own | came_at_end[b]
                v[b] += now
                v[b, numbers[t, b]] += float(own)
                found[:, numbers[t, b]] += v[b].numpy()
                of_x[t, b] = SMALL * bool(v[b].any())
        if not torch.is_grad_enabled():  # what creates a graph is a penalty, or an inner step
            task = torch._C._current_graph_task_id()
            probe.passes[task] = probe.passes.get(task, 0) + found
            if not probe.theta.requires_grad:
                probe._reached(None)
        before = [v.expand(shape).clone() for shape in ctx.given]
        return None, None, None, torch.full_like(probe.theta, SMALL), of_x, *before


def _greatest(a, b):
    return torch.where(b.abs() > a.abs(), b, a)


def _spread(v, shape):
    """[layers, B, H] of [layers, B, H] or [B, H]."""
    return v if len(shape) == 3 else v.unsqueeze(0)


def _by_row(part, shape):
    """[B, H], the greatest of all layers."""
    layers = _spread(part.detach().double(), shape)
    found = layers[0]
    for layer in layers[1:]:
        found = _greatest(found, layer)
    return found


def _told_apart(gradient):
    """Return what is codes in a gradient, and where there is anything else."""
    gradient = gradient.detach()
    codes = (gradient / GRID).round() * GRID
    return codes, ((gradient - codes).abs() > 2.0**-50).any(-1)
