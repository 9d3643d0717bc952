"""Spiking and liquid modules that are right, by hand, for checks that must not accuse them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    """A Heaviside step, and the derivative of an arctangent as its surrogate."""

    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, d: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return d / (1 + (torch.pi * v) ** 2)


class Leaky(nn.Module):
    """A leaky integrate-and-fire neuron with recurrent weights (Neftci et al., 2019, eq. 3-5).

    v = β v + W x + V z - z, spikes z where v > 1; state (v, z).
    """

    def __init__(self, input_size: int = 3, hidden_size: int = 4, threshold: float = 1.0) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.threshold = input_size, hidden_size, threshold
        self.of_x = nn.Linear(input_size, hidden_size)
        self.of_z = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x, state=None):
        zero = x.new_zeros(x.shape[1], self.hidden_size)
        v, z = (zero, zero) if state is None else state
        spikes = []
        for x_t in x:
            v = 0.9 * self.kept(v) + self.of_x(x_t) + self.of_z(z) - z
            z = Spike.apply(v - self.threshold)
            spikes.append(z)
        return torch.stack(spikes), (v, z)

    def kept(self, v: Tensor) -> Tensor:
        return v


class ResetInside(nn.Module):
    """A neuron that shows its potential only: no value of a step is constant, but all of them jump.

    v = β v + W x, and where that is above 1, 1 less.
    """

    state_batch_dim = 0

    def __init__(self, input_size: int = 3, hidden_size: int = 4) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.of_x = nn.Linear(input_size, hidden_size)

    def forward(self, x, state=None):
        v = x.new_zeros(x.shape[1], self.hidden_size) if state is None else state
        outputs = []
        for x_t in x:
            v = 0.9 * v + self.of_x(x_t)
            v = v - Spike.apply(v - 1)
            outputs.append(v)
        return torch.stack(outputs), v


class Rounded(nn.Module):
    """A GRU whose outputs are rounded, with the gradient passed straight through."""

    def __init__(self, input_size: int = 3) -> None:
        super().__init__()
        self.input_size, self.gru = input_size, nn.GRU(input_size, 4)

    def forward(self, x, state=None):
        y, h = self.gru(x, state)
        return y + (torch.round(8 * y) / 8 - y).detach(), h


class ClosedForm(nn.Module):
    """A closed-form continuous-time cell (Hasani et al., Nature Machine Intelligence 4, 2022).

    h = σ(-f t) ⊙ g + (1 - σ(-f t)) ⊙ k, with f, g, k of one backbone; inputs are (x, time spans).
    """

    batch_first = True

    def __init__(self, inputs: int = 3, hidden_size: int = 4) -> None:
        super().__init__()
        self.size = hidden_size
        self.backbone = nn.Sequential(nn.Linear(inputs + hidden_size, 8), nn.SiLU())
        self.f, self.g, self.k = (nn.Linear(8, hidden_size) for _ in range(3))

    def forward(self, inputs, h=None):
        x, spans = inputs
        h = x.new_zeros(len(x), self.size) if h is None else h
        outputs = []
        for x_t, dt in zip(x.unbind(1), spans.unbind(1), strict=True):
            of = self.backbone(torch.cat([x_t, h], -1))
            gate = torch.sigmoid(-self.f(of) * dt)
            h = gate * torch.tanh(self.g(of)) + (1 - gate) * torch.tanh(self.k(of))
            outputs.append(h)
        return torch.stack(outputs, 1), h


class TimeConstants(nn.Module):
    """A liquid time-constant cell with its fused solver (Hasani et al., AAAI 2021, eq. 1 and 3).

    Takes single steps: h = (h + Δt f A) / (1 + Δt (1/τ + f)), six times a step.
    """

    def __init__(self, inputs: int = 3, hidden_size: int = 4) -> None:
        super().__init__()
        self.f = nn.Linear(inputs + hidden_size, hidden_size)
        self.a, self.log_tau = (nn.Parameter(torch.randn(hidden_size)) for _ in range(2))

    def forward(self, x, h=None):
        h = x.new_zeros(len(x), len(self.a)) if h is None else h
        for _ in range(6):
            f = torch.sigmoid(self.f(torch.cat([x, h], -1)))
            h = (h + f * self.a / 6) / (1 + (torch.exp(-self.log_tau) + f) / 6)
        return h, h
