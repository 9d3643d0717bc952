"""A sequence of a diagonal layer whose initial state depends on the weights: sensitivities.

    E_t = ∂(state_t)/∂θ = J_t E_{t-1} + ∂⁺(state_t)/∂θ,   J_t = ∂(state_t)/∂(state_{t-1})

J_t mixes only the tensors of a unit's state. Over a chunk of L steps, E_L = P_0 E_0 + Σ_t P_t
∂⁺(state_t)/∂θ with P_t = J_L ⋯ J_{t+1}: the deltas and the gradient of the initial state that the
recursion of the backward pass finds for a gradient of 1 at the end. That is one such pass for each
tensor of the state, and one product. Back through the chunk, ∂L/∂θ gets ∂L/∂(state_0) E_0 besides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bptt._src.engines import looped, twin
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call, Saved
from bptt._src.engines.guard import only_by_autograd, without_autocast
from bptt._src.engines.sequence import gradients
from bptt.cells import State, Weights
from bptt.cells.recursion import FromAfter, Setting


class Sensitivities(NamedTuple):
    """∂(state)/∂(weights), for each tensor of the state and each sequence."""

    of_input: Tensor
    """[S, B, G·H, I], or I + 1 where there is a bias."""
    of_units: Tensor
    """[S, B, U·H]."""

    @classmethod
    def none_yet(cls, call: Call) -> Sensitivities:
        """Return zeros for a call."""
        return cls(*(call.x.new_zeros(shape) for shape in shapes(call)))


def shapes(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a call's sensitivities."""
    cell, w, B = call.cell, call.w, call.steps.batch
    H, columns = cell.hidden(w), w.ih.shape[1] + (w.b_ih is not None)
    return (cell.states, B, cell.gates_x * H, columns), (cell.states, B, cell.units * H)


def sequence(
    call: Call, before: Sensitivities
) -> tuple[Tensor, State, tuple[Tensor, ...], Sensitivities]:
    """Run a dense sequence of a cell without a recurrent matrix, as one node of the graph.

    Returns:
        The outputs, the final state, the states but h after each step where they are asked for,
        and the sensitivities of the final state.

    Raises:
        NotImplementedError: something other than a backward pass is asked for, as forward mode.
    """
    reason = only_by_autograd(*call.tensors())
    if reason is not None:
        raise NotImplementedError(f"bptt: credit='online' is for a backward pass alone: {reason}")
    y, *rest = _Online.apply(call, before, *call.tensors())
    states = call.cell.states
    others = rest[states : len(rest) - 2]
    return y, tuple(rest[:states]), tuple(others), Sensitivities(*rest[-2:])


class _Online(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, before: Sensitivities, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        engine: Any = engine_for(call, recorded=False)
        engine = engine if engine is looped else twin
        y, final, kept = engine.forward(call, keep=True)
        means = looped.means(call) if engine is looped else twin.IN_TORCH
        after = _after(call, Saved(y, kept), before, means)
        ctx.engine, ctx.call = engine, call.emptied()
        ctx.save_for_backward(*tensors, y, *before, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*after)
        others = [s.clone() for s in engine.other_states(call, kept)] if call.all_states else []
        return (y, *final, *others, *after)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needed, states = ctx.needs_input_grad[2:], ctx.call.cell.states
        n = len(needed)
        call = ctx.call.filled(ctx.saved_tensors[:n])
        y, of_input, of_units, *kept = ctx.saved_tensors[n:]
        saved, E = Saved(y, tuple(kept)), Sensitivities(of_input, of_units)
        asked = (needed[0], *(True,) * states, *needed[1 + states :])
        with without_autocast(call.x.device):
            d_x, *rest = gradients(ctx.engine, call, saved, grads[:-2], asked)
            d_state, d_w = rest[:states], Weights(*rest[states:])  # type: ignore[arg-type]
            return None, None, d_x, *(None,) * states, *_with_past(d_w, d_state, E)


def _after(call: Call, saved: Saved, E: Sensitivities, by: twin.Means) -> Sensitivities:
    """Compute the sensitivities of the final state."""
    cell, B, (X, U) = call.cell, call.steps.batch, shapes(call)
    x, _ = cell.inputs_and_masks(call.x, call.w)
    x = x.reshape(-1, B, x.shape[-1])
    if call.w.b_ih is not None:
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1)
    of_input, of_units = x.new_empty(X), x.new_empty(U)
    kept, before = twin.kept_of(call, saved)
    setting = Setting(call.w, call.steps, call.boundary)
    for s in range(cell.states):
        one = tuple(
            torch.full_like(t, float(r == s), memory_format=torch.contiguous_format)
            for r, t in enumerate(twin.rows_of(call.state))
        )
        deltas = by.recursion(cell, call.w).backward(kept, before, FromAfter(None, one), setting)
        D = deltas.of_input.view(len(x), B, -1)
        torch.bmm(D.permute(1, 2, 0), x.transpose(0, 1), out=of_input[s])
        if deltas.of_units is not None:
            torch.sum(deltas.of_units.view(len(x), B, -1), 0, out=of_units[s])
        for r, crossed in enumerate(one):  # what has become of it: ∂(tensor s)/∂(tensor r before)
            of_input[s] += crossed.repeat(1, cell.gates_x).unsqueeze(-1) * E.of_input[r]
            of_units[s] += crossed.repeat(1, cell.units) * E.of_units[r]
    return Sensitivities(of_input, of_units)


def _with_past(
    d_w: Weights, d_state: list[Tensor | None], E: Sensitivities
) -> tuple[Tensor | None, ...]:
    """Add the credit of the steps before, ∂L/∂(initial state) E, to the weights' gradients."""
    d = torch.stack([t.flatten(0, -2) for t in d_state if t is not None])  # [S, B, H]
    H = d.shape[-1]
    ih: Tensor | None = d_w.ih  # None where it is not needed
    b_ih, units = d_w.b_ih, d_w.units
    if ih is not None or b_ih is not None:
        of_gates = d.repeat(1, 1, E.of_input.shape[2] // H)
        past = torch.einsum("sbg,sbgi->gi", of_gates, E.of_input)
        ih = None if ih is None else ih + past[:, : ih.shape[1]]
        b_ih = None if b_ih is None else b_ih + past[:, -1]
    if units is not None:
        of_units = d.repeat(1, 1, E.of_units.shape[2] // H)
        units = units + (of_units * E.of_units).sum((0, 1)).view(units.shape)
    return ih, d_w.hh, b_ih, d_w.b_hh, d_w.hr, units
