"""The Elman network: one step.

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
    h_t = φ(a_t)                                          φ = tanh, ReLU or sigmoid

J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bptt.cells.cell import Cell, Nonlinearity
from bptt.cells.recursion import (
    Deltas,
    FromAfter,
    Kept,
    Setting,
    cross,
    report,
    rows_after,
    rows_before,
)
from bptt.cells.weights import Blocks, State


def equations(
    x: Blocks, h: Blocks, state: State, units: Blocks, phi: Callable[[Tensor], Tensor] = torch.tanh
) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, and the nonlinearity φ."""
    return (phi(x[0] + h[0]),)


class _ByHand:
    """h_t = φ(a_t), with φ' written in terms of h_t."""

    sums_biases = True
    projects = False
    keeps_blocks = False

    def __init__(self, phi: str) -> None:
        self.phi = phi

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """a_t = A_t + W_hh h_{t-1}; h_t = φ(a_t), in A's place."""
        w, steps, boundary = of
        W = w.hh.t()
        activate = {"tanh": torch.tanh_, "relu": torch.relu_, "sigmoid": torch.sigmoid_}[self.phi]
        for a, reset in steps.forth(A, boundary.resets):
            (h,) = rows_before(state, len(a), reset)
            activate(a.addmm_(h, W))
            state = rows_after(state, (a,))
        return Kept((A,)), state

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """δ_t = φ'(a_t) ⊙ dh_t; dh_{t-1} = ∂L/∂output_{t-1} + W_hhᵀ δ_t."""
        (D, d_state, norms, _), (w, steps, boundary) = given, of
        (Y,) = kept.states
        Delta = derivative(self.phi, Y)
        for delta, d, carry, cut, norm in steps.back(
            Delta, D, boundary.carry, boundary.cuts, norms
        ):
            dh = d_state[0][: len(delta)]
            report(norm, dh)
            if d is not None:
                dh += d
            delta *= dh
            torch.mm(delta, w.hh, out=dh)
            cross(carry, cut, dh)
        return Deltas(Delta, Delta)


def derivative(phi: str, h: Tensor) -> Tensor:
    """Compute φ' where φ, ``"tanh"``, ``"relu"`` or ``"sigmoid"``, has the value h."""
    if phi == "tanh":
        return 1 - h * h
    if phi == "relu":
        return (h <= 0).logical_not_().to(h.dtype)
    return h * (1 - h)


def _cell(phi: str, slope: float) -> Cell:
    step, rectifies = partial(equations, phi=getattr(torch, phi)), phi == "relu"
    return Cell(
        f"RNN_{phi.upper()}",
        1,
        1,
        step,
        by_hand=_ByHand(phi),
        is_native=True,
        phi=Nonlinearity(phi, slope, rectifies, partial(derivative, phi)),
    )


TANH, RELU, SIGMOID = _cell("tanh", 1.0), _cell("relu", 1.0), _cell("sigmoid", 0.25)
