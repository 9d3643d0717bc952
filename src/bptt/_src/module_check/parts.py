"""Checks that call a module in parts: in pieces of time, and one sequence at a time."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bptt._src.layout import join, unwrapped
from bptt._src.module_check.result import Check, skipped
from bptt._src.module_check.same import same_runs
from bptt._src.module_check.view import Run, View, can_be_cut
from bptt._src.pytree import map_tensors, tensors_of

TWO_WAYS = "it is bidirectional, so that its outputs depend on later steps"
REFUSALS = (TypeError, AttributeError, ValueError, RuntimeError, IndexError, NotImplementedError)


def pieces(view: View, trusted: bool) -> list[Check]:
    """Check that a whole sequence equals its pieces, from the state that was returned.

    Args:
        view: the module.
        trusted: whether the whole call has been compared with finite differences, so that it tells
            what the pieces should be; otherwise they tell what it should be.
    """
    T = view.layout.steps
    cuts = {"two pieces": (T // 2,), "single steps": tuple(range(1, T))}
    if not can_be_cut(view):
        return [skipped(name, TWO_WAYS) for name in cuts]
    checks = []
    for name, at in cuts.items():
        runs: tuple[Run, Run] = (view.in_pieces(at), view.whole)
        words = f"{name}, each from the returned state", "all steps in one call"
        found, expected = (0, 1) if trusted else (1, 0)
        checks.append(
            same_runs(
                view,
                name,
                runs[found],
                runs[expected],
                f"{words[0]}, equal {words[1]}, in values and gradients",
                f"found: {words[found]}; expected: {words[expected]}: the module does not go on "
                "from the state that it returns as it does within a call",
            )
        )
    return checks


def alone_in_batch(view: View) -> Check:
    """Check that each sequence on its own equals itself in the batch."""
    name = "batch"
    if view.layout.batch in (None, 1):
        return skipped(name, "the inputs are of one sequence")
    return same_runs(
        view,
        name,
        view.whole,
        alone(view, [view.layout.steps] * (view.layout.batch or 1)),
        "each sequence on its own equals itself in the batch, in values and gradients",
        "a sequence depends on the others of its batch (expected: each on its own), or the batch "
        "lies in another dimension",
    )


def alone(view: View, lengths: list[int]) -> Run:
    """Run each sequence on its own, over its own length; outputs are padded with zeros."""
    layout = view.layout

    def run(inputs: Any, state: Any) -> tuple[Any, Any]:
        outputs, states = [], []
        for b, length in enumerate(lengths):
            x, s = view.row(inputs, state, b)
            y, s = view.whole(layout.piece(x, 0, length), s)
            outputs.append(_padded(view, y, length))
            states.append(s)
        return view.sequences(outputs, states)

    return run


def packed(view: View) -> Check:
    """Check that a PackedSequence of unequal lengths equals its sequences, each on its own."""
    name, layout = "packed", view.layout
    if layout.batch is None or not isinstance(view.inputs, Tensor):
        return skipped(name, "only a batch in a single tensor can be packed")
    if hasattr(view.module, "cell") and not hasattr(view.module, "input_size"):
        return skipped(name, "a module that takes single steps takes no PackedSequence")
    order = [(k + 1) % layout.batch for k in range(layout.batch)]  # not sorted by length
    lengths = [max(1, layout.steps - 2 * k) for k in order]

    def run(inputs: Any, state: Any) -> tuple[Any, Any]:
        rows = pack_padded_sequence(
            inputs, torch.tensor(lengths), batch_first=layout.time == 1, enforce_sorted=False
        )
        y, after = view.whole(rows, state)
        if not isinstance(y, PackedSequence):
            raise TypeError(f"for a PackedSequence it returned outputs as a {type(y).__name__}")
        y, _ = pad_packed_sequence(y, layout.time == 1, total_length=layout.steps)
        return y, after

    try:
        with torch.no_grad():
            run(view.inputs, view.state)
    except REFUSALS as refusal:
        words = str(refusal).partition("\n")[0]
        return skipped(name, f"it takes no PackedSequence: {type(refusal).__name__}: {words}")
    return same_runs(
        view,
        name,
        run,
        alone(view, lengths),
        f"packed sequences of {', '.join(map(str, lengths))} steps equal each on its own, in "
        "values and gradients; padding gets no gradient",
        f"sequences of {', '.join(map(str, lengths))} steps, packed, are not what each is on its "
        "own: padding, or another sequence, leaks in",
    )


def resets(view: View) -> Check:
    """Check that a reset equals a separate call, in values and gradients."""
    name, layout = "resets", view.layout
    if not takes_resets(view.module):
        return skipped(name, "it takes no resets=")
    if layout.batch is None or layout.steps < 3:
        return skipped(name, "the inputs are no batch of three steps or more")
    at = torch.zeros(layout.steps, layout.batch, dtype=torch.bool)
    for b in range(layout.batch):
        at[1 + b % (layout.steps - 1), b] = True
    at[layout.steps - 1, 0] = True
    at = at.to(tensors_of(view.inputs)[0].device)
    given = layout.as_given(at)
    is_cut = can_be_cut(view)

    def run(inputs: Any, state: Any) -> tuple[Any, Any]:
        y, after = view.whole(inputs, state if is_cut else None, resets=given)
        return y, after if is_cut else None

    def expected(inputs: Any, state: Any) -> tuple[Any, Any]:
        outputs, states = [], []
        for b in range(layout.batch or 1):
            x, s = view.row(inputs, state if is_cut else None, b)
            y, s = _segments(view, x, s, [0, *at[:, b].nonzero().flatten().tolist(), layout.steps])
            outputs.append(y)
            states.append(s)
        y, after = view.sequences(outputs, states)
        return y, after if is_cut else None

    return same_runs(
        view if is_cut else view.part(0, layout.steps, None),
        name,
        run,
        expected,
        "a reset equals a separate call from the module's own state, in values and gradients",
        "a reset is not what a separate call from the module's own state is (expected): the state, "
        "or its gradient, crosses it",
    )


def _segments(view: View, x: Any, state: Any, cuts: list[int]) -> tuple[Any, Any]:
    outputs, after = [], state
    for k, (first, end) in enumerate(pairwise(cuts)):
        y, after = view.whole(view.layout.piece(x, first, end), state if k == 0 else None)
        outputs.append(y)
    return join(outputs, view.layout.time), after


def _padded(view: View, y: Any, length: int) -> Any:
    missing = view.layout.steps - length

    def pad(v: Tensor) -> Tensor:
        return functional.pad(v, [0, 0] * (v.dim() - 1 - view.layout.time) + [0, missing])

    return map_tensors(pad, y) if missing else y


def takes_resets(module: Any) -> bool:
    """Whether a module, or function, has an argument ``resets``."""
    inside = unwrapped(module) if isinstance(module, nn.Module) else module
    function = type(inside).forward if isinstance(inside, nn.Module) else inside
    try:
        return "resets" in inspect.signature(function).parameters
    except ValueError:  # a function without a signature, written in C
        return False
