"""Recurrent modules, each with one mistake; the values of most of them are right."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import bptt


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, None]:
        return d * ctx.factor, None


class FinalStateWithoutGradient(nn.GRU):
    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        return y, h.detach()


class FinalCellWithoutGradient(nn.LSTM):
    def forward(self, x, state=None):
        y, (h, c) = super().forward(x, state)
        return y, (h, c.detach())


class OneStepAtATime(nn.Module):
    """A GRU from its equations, step by step, with places for mistakes."""

    def __init__(self, input_size: int = 3, hidden_size: int = 4) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.of_x = nn.Linear(input_size, 3 * hidden_size)
        self.weight_hh = nn.Parameter(torch.randn(3 * hidden_size, hidden_size) / 2)
        self.bias_hh = nn.Parameter(torch.randn(3 * hidden_size) / 4)

    def step(self, x: Tensor, h: Tensor, t: int) -> Tensor:
        of_h = nn.functional.linear(h, self.weight_hh, self.bias(t))
        (r, z, n), (hr, hz, hn) = self.of_x(x).chunk(3, -1), of_h.chunk(3, -1)
        z = self.gate(torch.sigmoid(z + hz))
        n = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        return (1 - z) * n + z * h

    def bias(self, t: int) -> Tensor:
        return self.bias_hh

    def gate(self, z: Tensor) -> Tensor:
        return z

    def carried(self, h: Tensor, t: int) -> Tensor:
        return h

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[1], self.hidden_size) if state is None else state
        outputs = []
        for t in range(len(x)):
            h = self.step(x[t], self.carried(h, t), t)
            outputs.append(h)
        return torch.stack(outputs), h


class GateWithWrongDerivative(OneStepAtATime):
    def gate(self, z):
        return Scaled.apply(z, 0.5)


class NothingFromFurtherThanTwoSteps(OneStepAtATime):
    """Truncated inside: nothing crosses from step 3 of a call to step 2."""

    def carried(self, h, t):
        return h.detach() if t == 3 else h


class InitialStateWithoutItsFirstStep(OneStepAtATime):
    """The gradient of the initial state is that of the state after the first step."""

    def forward(self, x, state=None):
        if state is None:
            return super().forward(x)
        h = self.step(x[0], state.detach(), 0) + (state - state.detach())
        outputs = [h]
        for t in range(1, len(x)):
            h = self.step(x[t], h, t)
            outputs.append(h)
        return torch.stack(outputs), h


class BiasCountedTwice(OneStepAtATime):
    """In steps from the third on."""

    def bias(self, t):
        return Scaled.apply(self.bias_hh, 2.0) if t >= 2 else self.bias_hh


class BiasCountedTwiceAlways(OneStepAtATime):
    def bias(self, t):
        return Scaled.apply(self.bias_hh, 2.0)


class DropoutMaskDrawnAgain(OneStepAtATime):
    """A new mask in the backward pass."""

    p = 0.5

    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        return (Dropped.apply(y, self.p) if self.training else y), h


class Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, p):
        ctx.p = p
        return y * (torch.rand_like(y) > p) / (1 - p)

    @staticmethod
    def backward(ctx, d):
        return d * (torch.rand_like(d) > ctx.p) / (1 - ctx.p), None


class DropoutIgnoredInBackward(OneStepAtATime):
    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        if self.training:
            y = y + (nn.functional.dropout(y, 0.5) - y).detach()
        return y, h


class SameMaskInEveryCall(OneStepAtATime):
    dropout = 0.5

    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        if self.training:
            random = torch.Generator().manual_seed(0)
            y = y * (torch.rand(y.shape, generator=random) > self.dropout)
        return y, h


class DropsNothing(nn.LSTM):
    """dropout= has no effect."""

    def forward(self, x, state=None):
        training, self.training = self.training, False
        try:
            return super().forward(x, state)
        finally:
            self.training = training


class DropsInEvaluation(nn.GRU):
    def forward(self, x, state=None):
        self.training = True
        return super().forward(x, state)


class RowsMixed(nn.GRU):
    """Normalised over the batch."""

    def forward(self, x, state=None):
        return super().forward(x - x.mean(1, keepdim=True), state)


class RowsMixedBackwards(nn.GRU):
    """The gradients of the inputs are in the order of the batch turned round."""

    def forward(self, x, state=None):
        if x.requires_grad:
            x = Turned.apply(x)
        return super().forward(x, state)


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d):
        return d.flip(1)


class PaddingLeaks(nn.GRU):
    """The final states of packed sequences are those after the padding."""

    def forward(self, x, state=None):
        if not isinstance(x, PackedSequence):
            return super().forward(x, state)
        padded, lengths = pad_packed_sequence(x)
        y, h = super().forward(padded, state)
        return pack_padded_sequence(y, lengths, enforce_sorted=False), h


class ResetsLetGradientThrough(OneStepAtATime):
    """The state is reset in its values, and not in the gradient."""

    resets = None

    def forward(self, x, state=None, resets=None):
        self.resets = resets
        return super().forward(x, state)

    def carried(self, h, t):
        return h if self.resets is None else h - h.detach() * self.resets[t, :, None]


class ResetsOneStepLate(bptt.GRU):
    def forward(self, x, hx=None, *, resets=None):
        if resets is not None:
            resets = torch.cat([torch.zeros_like(resets[:1]), resets[:-1]])
        return super().forward(x, hx, resets=resets)


class StateOfAnotherStep(nn.RNN):
    """The state that it returns is the one before the last step."""

    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        return y, (y[-2:-1] if isinstance(y, Tensor) and len(y) > 1 else h)


class RemembersTheLastCall(nn.GRU):
    h = None

    def forward(self, x, state=None):
        y, after = super().forward(x, self.h if state is None else state)
        self.h = after.detach()
        return y, after


class StateChangedInPlace(OneStepAtATime):
    def forward(self, x, state=None):
        y, h = super().forward(x, state)
        if state is not None:
            with torch.no_grad():
                state.data.copy_(h)
        return y, h


class OnceOnly(torch.autograd.Function):
    """tanh, whose derivative has a derivative of zero."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.slope = 1 - y.detach() ** 2
        return y

    @staticmethod
    def backward(ctx, d):
        return d * ctx.slope


class SecondDerivativeMissing(OneStepAtATime):
    def gate(self, z):
        return 0.5 + 0.5 * OnceOnly.apply(2 * z - 1)
