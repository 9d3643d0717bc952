"""A whole sequence of one layer, with backpropagation through time derived by hand, in plain torch.

This is the readable twin of a native kernel, and what runs where there is none: the large products
over all steps, before and after a cell's two recursions.

    forward     the input's part of every gate, for all steps, as one product
                the recursion over t
    backward    the local derivatives, for all steps at once, and the recursion of the deltas
                the weights' and the input's gradients, for all steps, as one product each

Names: N rows (all steps of all sequences, ``bptt._src.steps``), B sequences, I inputs, H hidden
units, P outputs (H unless there is a projection), G gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.engines.engine import Gradients
from bptt._src.engines.windows import Windows
from bptt._src.steps import Crossing, Steps
from bptt.cells import Cell, State, Weights
from bptt.cells.derived import recursion_of
from bptt.cells.recursion import Deltas, FromAfter, Kept, Setting


def _previous(steps: Steps, initial: Tensor, states: Tensor, resets: Tensor | None) -> Tensor:
    before = steps.previous(initial, states)
    return before if resets is None else before.masked_fill_(resets, 0)


def _project(cell: Cell, x: Tensor, w: Weights) -> Tensor:
    """Compute the input's part of every gate, for all steps, [N, G·H]."""
    bias = w.b_ih
    if bias is not None and w.b_hh is not None and recursion_of(cell).sums_biases:
        bias = bias + w.b_hh
    return torch.mm(x, w.ih.t()) if bias is None else torch.addmm(bias, x, w.ih.t())


def forward(
    cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing, keep: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.engine.Engine` says."""
    rows, initial = x.flatten(0, -2), _rows_of(state)
    A = _project(cell, rows, w)
    kept, final = recursion_of(cell).forward(A, initial, Setting(w, steps, at))
    after = (s.clone().view(like.shape) for s, like in zip(final, state, strict=True))
    y, *others = kept.states
    return y.view(*x.shape[:-1], y.shape[1]), tuple(after), (*kept.own, *others)


def unpack(cell: Cell, kept: tuple[Tensor, ...], hidden: int) -> tuple[Tensor, ...]:
    """Return what a forward pass kept, as :class:`engines.engine.Engine` says."""
    return (*kept[0].split(hidden, dim=1), kept[-1]) if kept else ()


def backward(
    cell: Cell,
    x: Tensor,
    state: State,
    w: Weights,
    steps: Steps,
    at: Crossing,
    y: Tensor,
    kept: tuple[Tensor, ...],
    d_y: Tensor | None,
    d_state: State | None,
    needed: tuple[bool, ...],
    windows: Windows | None = None,
    by_windows: bool = False,
    row_norms: Tensor | None = None,
) -> Gradients:
    """Go back through it, as :class:`engines.engine.Engine` says."""
    layout, x, y = x.shape[:-1], x.flatten(0, -2), y.flatten(0, -2)
    d_y = None if d_y is None else d_y.flatten(0, -2)
    if d_state is None:
        sequences = steps.batch if windows is None else windows.steps.batch
        d_state = tuple(s.new_zeros(sequences, s.shape[-1]) for s in state)
    others = cell.states - 1
    all_kept = Kept((y, *kept[len(kept) - others :]), kept[: len(kept) - others])
    before = tuple(
        _previous(steps, first, states, at.resets)
        for first, states in zip(_rows_of(state), all_kept.states, strict=True)
    )
    run = recursion_of(cell).backward
    if windows is None:
        after = FromAfter(d_y, _rows_of(d_state), row_norms)
        deltas = total = run(all_kept, before, after, Setting(w, steps, at))
    else:
        # One recursion over all windows; their deltas of the same step are then summed.
        def windowed(rows: Tensor | None) -> Any:
            return None if rows is None else rows[windows.rows]

        deltas = run(
            Kept(*(tuple(map(windowed, rows)) for rows in all_kept)),
            tuple(map(windowed, before)),
            FromAfter(d_y, d_state, row_norms),
            Setting(w, windows.steps, Crossing(windowed(at.carry), windowed(at.resets))),
        )
        total = deltas
        if any(needed[1:]) or not by_windows:
            total = Deltas(*(_summed(d, windows, len(x)) for d in deltas))  # type: ignore[arg-type]
    d_w = _of_weights(w, x, before[0], all_kept, total, needed[1:])
    d_x = (deltas if by_windows else total).of_input.mm(w.ih) if needed[0] else None
    if d_x is not None and windows is None:
        d_x = d_x.view(*layout, d_x.shape[1])
    return Gradients(d_x, d_state, d_w)


def _rows_of(state: State) -> State:
    """Views of it, each of its tensors [B, ...], whatever the layout."""
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
) -> tuple[Tensor | None, ...]:
    """The weights' gradients, over all steps at once; only those that are needed."""
    wanted, hr, units = Weights(*needed), None, None  # type: ignore[arg-type]
    if wanted.hr and deltas.of_output is not None:
        hr = deltas.of_output.t().mm(kept.own[-1])
    if wanted.units and deltas.of_units is not None and w.units is not None:
        units = deltas.of_units.sum(0).view(w.units.shape)
    return (
        deltas.of_input.t().mm(x) if wanted.ih else None,
        deltas.of_hidden.t().mm(h_before) if wanted.hh else None,
        deltas.of_input.sum(0) if wanted.b_ih else None,
        deltas.of_hidden.sum(0) if wanted.b_hh else None,
        hr,
        units,
    )
