"""What a step does to a gradient, apart from the products with its weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor

from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call
from bptt._src.steps import Boundary, Steps
from bptt.cells import Cell, State, Weights, elman


class Locals(NamedTuple):
    """The local derivatives of all steps of a layer; compare :mod:`engines.twin`.

    A step takes ∂L/∂(state after it) to that before it. For every gate δ_g = d ⊙ ∂/∂a_g, where d
    is ∂L/∂h for an Elman network and a GRU; for the LSTM ∂L/∂c (with what comes through h added)
    for the gates i, f, g, and ∂L/∂m for o, with h = m, or W_hr m.
    """

    y: Inexact[Tensor, "rows output"]
    """h_t, [N, P]."""
    of_input: Inexact[Tensor, "rows gates hidden"]
    """∂/∂(W_ih x_t), [N, G, H]."""
    of_hidden: Inexact[Tensor, "rows gates hidden"]
    """∂/∂(W_hh h_{t-1}), [N, G, H]: the same but for the GRU's reset gate."""
    kept: Inexact[Tensor, "rows hidden"] | None
    """What of the state stays as it is: the GRU's z, the LSTM's f; [N, H]."""
    through: Inexact[Tensor, "rows hidden"] | None
    """The LSTM's ∂m/∂c, [N, H]."""


def local_derivatives(
    cell: Cell, x: Tensor, initial: State, w: Weights, steps: Steps, resets: Tensor | None
) -> Locals:
    """Run a layer, and give the local derivatives of its steps.

    Args:
        cell: whose equations.
        x: the inputs, [N, I].
        initial: the state before the first step, each of its tensors [B, ...].
        w: the layer's weights.
        steps: which rows belong to which step.
        resets: where the state is set to zero before the row's step, [N, 1].
    """
    call = Call(cell, x, initial, w, steps, Boundary(None, resets))
    engine: Any = engine_for(call, recorded=False)
    y, _, kept = engine.forward(call, keep=True)
    values = [v.unsqueeze(1) for v in engine.unpack(cell, kept, w.hh.shape[0] // cell.gates_h)]

    def before(first: Tensor, states: Tensor) -> Tensor:
        found = steps.previous(first, states)
        return (found if resets is None else found.masked_fill(resets, 0)).unsqueeze(1)

    if cell.name == "GRU":
        r, z, n, q = values
        of_n = (1 - z) * (1 - n * n)
        of_r = of_n * q * r * (1 - r)
        of_z = (before(initial[0], y) - n) * z * (1 - z)
        of_input, of_hidden = torch.cat([of_r, of_z, of_n], 1), torch.cat([of_r, of_z, of_n * r], 1)
        return Locals(y, of_input, of_hidden, z.squeeze(1), None)
    if cell.name == "LSTM":
        i, f, g, o, after = values
        m = torch.tanh(after)
        c = before(initial[1], after.squeeze(1))
        of_c = (g * i * (1 - i), c * f * (1 - f), i * (1 - g * g))
        local = torch.cat([*of_c, m * o * (1 - o)], 1)
        return Locals(y, local, local, f.squeeze(1), (o * (1 - m * m)).squeeze(1))
    local = elman.derivative(cell.name.removeprefix("RNN_").lower(), y).unsqueeze(1)
    return Locals(y, local, local, None, None)
