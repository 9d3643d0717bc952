"""The two passes of a cell over a sequence: the recursions, without the large products.

A backward pass is the recursion of the deltas, last step first:

    δ_t = local derivative ⊙ ∂L/∂(state after step t)
    ∂L/∂h_{t-1} += W_hhᵀ δ_t, times carry[t] where it crosses from t to t-1

δ_t is ∂L/∂a_t, the gradient with respect to the gates before their nonlinearity. P. Werbos,
"Backpropagation through time: what it does and how to do it", Proc. IEEE 78 (1990).

Names: N rows (all steps of all sequences, ``bptt._src.steps``), B sequences, H hidden units,
P outputs (H unless there is a projection), G gates. Capital letters hold all N rows, small ones
the rows of one step.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Inexact
from torch import Tensor

from bptt._src.steps import Boundary, Steps
from bptt.cells.weights import State, Weights


class Kept(NamedTuple):
    """What the forward pass leaves for the backward pass, of all rows."""

    states: State
    """The states after each step, each of its tensors [N, ...]; the first is the output."""
    own: tuple[Tensor, ...] = ()
    """What this recursion needs besides; with a projection the last is its input, [N, H]."""


class Setting(NamedTuple):
    """What a recursion is of: a layer in one direction, over a sequence."""

    w: Weights
    steps: Steps
    """Which rows belong to which step."""
    boundary: Boundary
    """What happens between a step and the one before it."""


class FromAfter(NamedTuple):
    """The gradients that a backward pass starts from, and where it notes those on its way."""

    D: Tensor | None
    """∂L/∂output, [N, P], or None where no output was used."""
    d_state: State
    """∂L/∂(final state), each of its tensors [B, ...]; becomes that of the initial one."""
    norms: Tensor | None = None
    """To be filled with the norms of the state's gradient, [N, tensors of the state]."""
    others: tuple[Tensor | None, ...] = ()
    """∂L/∂(state after each step) of the states but the output, each [N, H]; None or missing: it is
    zero."""

    def of_others(self, states: int) -> tuple[Tensor | None, ...]:
        """Return ``others``, one for each of so many states but the output."""
        return self.others or (None,) * (states - 1)


class Deltas(NamedTuple):
    """What the recursion of the backward pass leaves for the large products."""

    of_input: Inexact[Tensor, "rows gates"]
    """∂L/∂(W_ih x_t + b_ih), [N, G·H]."""
    of_hidden: Inexact[Tensor, "rows gates"]
    """∂L/∂(W_hh h_{t-1} + b_hh), [N, G·H]: the same but for the GRU's reset gate."""
    of_output: Inexact[Tensor, "rows output"] | None = None
    """∂L/∂h_t, [N, P], where there is a projection."""
    of_units: Inexact[Tensor, "rows of_units"] | None = None
    """∂L/∂(per-unit weights) of each row, [N, U·H], where there are any."""


@runtime_checkable
class Recursion(Protocol):
    """The two recursions of a cell."""

    sums_biases: bool
    """Whether b_hh may be added to b_ih, as where W_ih x_t and W_hh h_{t-1} enter as a sum."""
    projects: bool
    """Whether it knows a projection."""
    keeps_blocks: bool
    """Whether what it keeps begins with W_ih x_t + b_ih and W_hh h_{t-1} + b_hh of all rows."""

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """Run the recursion; A [N, G·H] holds the input's part of the gates, with its bias.

        A may be overwritten and kept; ``of`` is what the recursion is of.

        Returns:
            What the backward pass needs, and the final state, which may be views of that.
        """

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """Run the recursion of the deltas, in place on d_state.

        Args:
            kept: what :meth:`forward` gave.
            before: the state from which each row's step starts, each of its tensors [N, ...].
            given: the gradients of what comes after.
            of: the layer, as for :meth:`forward`, or its windows.
        """


Place = tuple[int, int]
"""The number of a result of the equations, and of what they were given: the blocks of x, those of
h, the tensors of the state, one after the other."""


class LocalDerivatives(NamedTuple):
    """The derivatives of a cell's equations, diagonals of all rows, [N, H]; none that is zero."""

    of_results: dict[int, Tensor]
    """∂h/∂(another result), by its number: what h passes on to it is here and nowhere else."""
    of_each: dict[Place, Tensor]
    """∂(result)/∂(what was given); those of h come last."""


class Localised(Protocol):
    """A recursion by hand that gives its local derivatives, which not all do."""

    def local_derivatives(
        self, values: tuple[Tensor, ...], before: State, after: State
    ) -> LocalDerivatives:
        """Return them.

        Args:
            values: the gates, and what else the recursion keeps, each [N, H].
            before: the state from which each row's step starts, each of its tensors [N, ...].
            after: the state after it.
        """


def rows_before(state: State, n: int, resets: Tensor | None) -> State:
    """The states of the first n sequences, which are still running; zero where they are reset."""
    rows = state if len(state[0]) == n else tuple(s[:n] for s in state)
    return rows if resets is None else tuple(s.masked_fill(resets, 0) for s in rows)


def rows_after(state: State, rows: State) -> State:
    """The states after a step: new ones for those that are running, the others' as they were."""
    n = len(rows[0])
    if len(state[0]) == n:
        return rows
    return tuple(torch.cat([r, s[n:]]) for r, s in zip(rows, state, strict=True))


def cross(carry: Tensor | None, cuts: Tensor | None, *gradients: Tensor) -> None:
    for d in gradients:
        if carry is not None:
            d.mul_(carry)
        if cuts is not None:
            d.masked_fill_(cuts, 0)


def report(norms: Tensor | None, *gradients: Tensor) -> None:
    """Note the norms of each row of the state's gradients, [n, tensors of the state]."""
    if norms is not None:
        for norm, d in zip(norms.unbind(1), gradients, strict=True):
            torch.linalg.vector_norm(d, dim=1, dtype=norms.dtype, out=norm)
