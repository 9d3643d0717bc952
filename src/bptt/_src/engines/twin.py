"""A whole sequence of one layer, with backpropagation through time derived by hand, in plain torch.

This is the readable twin of a native kernel, and what runs where there is none: the large products
over all steps, before and after a cell's two recursions.

    forward     the input's part of every gate, for all steps, as one product
                the recursion over t
    backward    the local derivatives, for all steps at once, and the recursion of the deltas
                the weights' and the input's gradients, for all steps, as one product each

Names: N rows (all steps of all sequences, ``bptt._src.steps``), B sequences, I inputs, H hidden
units, P outputs (H unless there is a projection), G gates, V labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt._src.engines.call import AnyCall, Call, Gradients, Incoming, Saved
from bptt._src.engines.guard import only_by_autograd
from bptt._src.engines.readout import Found, Readout
from bptt._src.engines.windows import Windows
from bptt._src.steps import Boundary, Steps
from bptt.cells import Cell, State, Weights
from bptt.cells.derived import recursion_of
from bptt.cells.recursion import Deltas, FromAfter, Kept, Recursion, Setting

RECORDS = False

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(a, b, bias) -> a b + bias``."""


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias."""
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


class Means(NamedTuple):
    """With what a layer is computed: its recursions, and the large products around them."""

    recursion: Callable[[Cell, Weights], Recursion] = recursion_of
    multiply: Product = multiply


IN_TORCH = Means()


def serves(call: AnyCall) -> str | None:
    """Return why it cannot do this, as :class:`engines.call.Engine` says."""
    if isinstance(call, Readout) and call.hidden.is_meta:
        return "labels on the meta device cannot be checked"
    return only_by_autograd(*call.tensors())


def forward(
    call: Call, keep: bool, by: Means = IN_TORCH
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.call.Engine` says, by these means."""
    call.check_sizes()
    w, layout = call.w, call.x.shape[:-1]
    x, masks = call.cell.inputs_and_masks(call.x.flatten(0, -2), w)
    recursion = by.recursion(call.cell, w)
    A = _project(x, w, recursion.sums_biases, by.multiply)
    if masks is not None:
        A = torch.cat([A, masks], 1)
    setting = Setting(w, call.steps, call.boundary)
    kept, final = recursion.forward(A, rows_of(call.state), setting)
    after = (s.clone().view(like.shape) for s, like in zip(final, call.state, strict=True))
    y, *others = kept.states
    return y.view(*layout, y.shape[1]), tuple(after), (*kept.own, *others)


def blocks(call: Call, before: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates before their nonlinearities, as :class:`engines.call.Engine` says."""
    return kept[:2] if recursion_of(call.cell, call.w).keeps_blocks else None


def values(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates, as :class:`engines.call.Engine` says."""
    if recursion_of(call.cell, call.w) is not call.cell.by_hand or not kept:
        return None
    gates, *more = kept[: len(kept) + 1 - call.cell.states]
    return (*gates.split(call.cell.hidden(call.w), 1), *more)


def other_states(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the states but h after each step, as :class:`engines.call.Engine` says."""
    return kept[len(kept) + 1 - call.cell.states :]


def backward(call: Call, saved: Saved, incoming: Incoming, by: Means = IN_TORCH) -> Gradients:
    """Go back through it, as :class:`engines.call.Engine` says, by these means."""
    cell, w, boundary, windows = call.cell, call.w, call.boundary, call.windows
    layout = call.x.shape[:-1]
    x, masks = cell.inputs_and_masks(call.x.flatten(0, -2), w)
    d_y = None if incoming.d_y is None else incoming.d_y.flatten(0, -2)
    d_state: Any = incoming.d_state
    norms, others = incoming.row_norms, incoming.d_others
    if d_state is None:
        d_state = tuple(s.new_zeros(call.walk.batch, s.shape[-1]) for s in call.state)
    kept, before = kept_of(call, saved)
    run = by.recursion(cell, w).backward
    if windows is None:
        after = FromAfter(d_y, rows_of(d_state), norms, others)
        deltas = total = run(kept, before, after, Setting(w, call.steps, boundary))
    else:
        # One recursion over all windows; their deltas of the same step are then summed.
        def windowed(rows: Tensor | None) -> Any:
            return None if rows is None else rows[windows.rows]

        deltas = run(
            Kept(*(tuple(map(windowed, rows)) for rows in kept)),
            tuple(map(windowed, before)),
            FromAfter(d_y, d_state, norms, others),
            Setting(w, windows.steps, Boundary(*map(windowed, boundary))),
        )
        total = deltas
    of_x, of_w = incoming.needed[0], incoming.needed[1 + cell.states :]
    if windows is not None and (any(of_w) or not call.by_windows):
        total = Deltas(*(_summed(d, windows, len(x)) for d in deltas))  # type: ignore[arg-type]
    d_w = _of_weights(w, x, before[0], kept, total, of_w, by.multiply)
    d_input = (deltas if call.by_windows else total).of_input
    d_x = by.multiply(d_input, w.ih, None) if of_x else None
    if d_x is not None and masks is not None:
        d_x = torch.nn.functional.pad(d_x, (0, masks.shape[1]))
    if d_x is not None and windows is None:
        d_x = d_x.view(*layout, d_x.shape[1])
    return Gradients(d_x, d_state, d_w)


def kept_of(call: Call, saved: Saved) -> tuple[Kept, State]:
    """Return what a recursion back begins with: what was kept, and the states before each row."""
    states = other_states(call, saved.kept)
    own = saved.kept[: len(saved.kept) - len(states)]
    kept = Kept((saved.y.flatten(0, -2), *states), own)
    before = tuple(
        _previous(call.steps, first, after, call.boundary.resets)
        for first, after in zip(rows_of(call.state), kept.states, strict=True)
    )
    return kept, before


def _previous(steps: Steps, initial: Tensor, states: Tensor, resets: Tensor | None) -> Tensor:
    before = steps.previous(initial, states)
    return before if resets is None else before.masked_fill_(resets, 0)


def _project(x: Tensor, w: Weights, sums_biases: bool, mm: Product) -> Tensor:
    """Compute the input's part of every gate, for all steps, [N, G·H]."""
    bias = w.b_ih
    if bias is not None and w.b_hh is not None and sums_biases:
        bias = bias + w.b_hh
    return mm(x, w.ih.t(), bias)


def rows_of(state: State) -> State:
    """Return views of it, each of its tensors [B, ...], whatever the layout."""
    return tuple(s.flatten(0, -2) for s in state)


def _summed(rows: Tensor | None, windows: Windows, n: int) -> Tensor | None:
    if rows is None:
        return None
    return rows.new_zeros(n, rows.shape[1]).index_add_(0, windows.rows, rows)


def _of_weights(
    w: Weights,
    x: Tensor,
    h_before: Tensor,
    kept: Kept,
    deltas: Deltas,
    needed: tuple[bool, ...],
    mm: Product,
) -> tuple[Tensor | None, ...]:
    """The weights' gradients, over all steps at once; only those that are needed."""
    wanted, hr, units = Weights(*needed), None, None  # type: ignore[arg-type]
    if wanted.hr and deltas.of_output is not None:
        hr = mm(deltas.of_output.t(), kept.own[-1], None)
    if wanted.units and deltas.of_units is not None and w.units is not None:
        units = deltas.of_units.sum(0).view(w.units.shape)
    return (
        mm(deltas.of_input.t(), x, None) if wanted.ih else None,
        mm(deltas.of_hidden.t(), h_before, None) if wanted.hh else None,
        deltas.of_input.sum(0) if wanted.b_ih else None,
        deltas.of_hidden.sum(0) if wanted.b_hh else None,
        hr,
        units,
    )


def cross_entropy(readout: Readout) -> Found:
    """Compute a readout's losses and their gradients, as :class:`engines.call.Engine` says."""
    hidden, weight, bias, targets, factors, needed, _ = readout
    losses = hidden.new_empty(len(hidden))
    d_hidden, d_weight, d_bias = (
        torch.zeros_like(t, memory_format=torch.contiguous_format)
        if t is not None and wanted
        else None
        for t, wanted in zip((hidden, weight, bias), needed, strict=True)
    )
    logits = hidden.new_empty(min(readout.rows_at_a_time(), len(hidden)), len(weight))
    for n in readout.chunks():
        h, target, p = hidden[n], targets[n].unsqueeze(1), logits[: n.stop - n.start]
        if bias is None:
            torch.mm(h, weight.t(), out=p)
        else:
            torch.addmm(bias, h, weight.t(), out=p)
        of_target, largest = p.gather(1, target), p.amax(1, keepdim=True)
        torch.softmax(p, 1, out=p)
        # ln Σ exp(logits), from the largest logit and its probability, which is never near 0.
        total = largest - p.amax(1, keepdim=True).log()
        torch.sub(total, of_target, out=losses[n].unsqueeze(1))
        if not any(needed):
            continue
        p.scatter_add_(1, target, p.new_full((1, 1), -1).expand(len(p), 1))  # p - e
        if factors is not None:
            p *= factors[n].unsqueeze(1)
        if d_hidden is not None:
            torch.mm(p, weight, out=d_hidden[n])
        if d_weight is not None:
            d_weight.addmm_(p.t(), h)
        if d_bias is not None:
            d_bias += p.sum(0)
    return Found(losses, d_hidden, d_weight, d_bias)
