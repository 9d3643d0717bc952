"""The rate network, of leaky units in continuous time: one Euler step.

    x_t = (1 - α) ⊙ x_{t-1} + α ⊙ (W_ih u_t + b_ih + W_hh r_{t-1} + b_hh)     current
    r_t = φ(x_t)                                                              firing rate

for an input u_t, with α = Δt/τ. H. F. Song, G. R. Yang and X.-J. Wang, "Training
excitatory-inhibitory recurrent neural networks for cognitive tasks: a simple and flexible
framework", PLOS Computational Biology 12 (2016). The states are r and x: the rates are the output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bptt.cells.cell import Cell, Leak
from bptt.cells.weights import Blocks, State


def equations(
    x: Blocks,
    h: Blocks,
    state: State,
    units: Blocks,
    alpha: float | None = 0.2,
    phi: Callable[[Tensor], Tensor] = torch.relu,
) -> State:
    """Compute r_t and x_t; as :attr:`bptt.Cell.equations`, with α and φ of :func:`make_rate`."""
    share = torch.sigmoid(units[0]) if alpha is None else alpha
    current = (1 - share) * state[1] + share * (x[0] + h[0])
    return phi(current), current


def mean(before: State, after: State, p: float, phi: Callable[[Tensor], Tensor]) -> State:
    """Return the mean of x of two states, and its rate; as :attr:`bptt.Cell.mean`."""
    current = p * before[1] + (1 - p) * after[1]
    return phi(current), current


LONGER = (
    "a smaller alpha (longer tau) reaches further: bptt.cells.make_rate(alpha=1 / L) for a lag of "
    "L steps, or alpha=None, with which each unit learns its own and bptt.init.chrono_ spreads them"
)


def make_rate(alpha: float | None = 0.2, phi: Callable[[Tensor], Tensor] = torch.relu) -> Cell:
    """Make a rate network's cell; :data:`bptt.cells.RATE` is that of the defaults.

    Args:
        alpha: Δt/τ, the share of the current that a step renews; None: each unit learns its own,
            the sigmoid of its weight in ``weight_units``. They begin at about 1/2, where the leak
            forgets in 2 steps; :func:`bptt.init.chrono_` spreads them over time scales.
        phi: elementwise, from current to rate. States begin at zero, the rate too: where φ(0) is
            not 0, give r_0 = φ(x_0) as the initial state.

    Raises:
        ValueError: alpha is not above 0 and at most 1.
        TypeError: phi is no function.

    >>> import torch, bptt
    >>> network = bptt.Recurrent(bptt.cells.make_rate(alpha=None, phi=torch.tanh), 3, 5)
    >>> rates, (last_rates, last_currents) = network(torch.randn(7, 2, 3))
    >>> torch.allclose(last_rates, last_currents.tanh(), atol=1e-6)
    True
    """
    if alpha is not None and not 0 < alpha <= 1:
        raise ValueError(f"bptt.cells.make_rate: alpha must be above 0 and at most 1, got {alpha}")
    if not callable(phi):
        raise TypeError(
            f"bptt.cells.make_rate: phi must be a function, such as torch.relu, got {phi!r}"
        )
    return Cell(
        "RATE",
        1,
        1,
        partial(equations, alpha=alpha, phi=phi),
        states=2,
        units=0 if alpha is not None else 1,
        tied=(0, 1),
        leak=Leak(alpha, longer=LONGER),
        mean=partial(mean, phi=phi),
    )


RATE = make_rate()
