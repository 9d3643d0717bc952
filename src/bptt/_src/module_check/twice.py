"""Second derivatives, against finite differences of the first ones."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt._src.module_check.blocks import Directions, moved, parameter_moved
from bptt._src.module_check.differences import precision, settled
from bptt._src.module_check.result import Check, WrongNumber, passed, skipped, wrong
from bptt._src.module_check.view import View, floats
from bptt._src.pytree import is_float, map_tensors

_REFUSALS = ("once_differentiable", "not implemented", "differentiate twice", "double backward",
             "second derivative", "backward a second time")  # fmt: skip


def double_backward(view: View, reference: View) -> Check:
    """Check derivatives of derivatives, by all inputs, states and parameters."""
    name = "double backward"
    directions = Directions.of(view)
    try:
        found = _second(view, directions, None)
    except RuntimeError as refusal:
        words = str(refusal)
        if not any(r in words.lower() for r in _REFUSALS):
            raise
        first = words.partition("\n")[0]
        return skipped(name, f"the module does not support it: {first[:120]}")
    if _wrong(view, reference, directions, found, None) is None:
        return passed(name, "the gradient of a gradient equals its finite differences")
    for r in range(len(directions.rows)):
        problem = _wrong(view, reference, directions, _second(view, directions, r), r)
        if problem is not None:
            return wrong(name, "expected: finite differences of the gradient", problem)
    return wrong(name, "the gradient of a gradient is not what its finite differences are")


def _wrong(
    view: View, reference: View, directions: Directions, found: Tensor, row: int | None
) -> WrongNumber | None:
    widths, tolerance = precision(view, reference)
    each = [_differences(reference, directions, row, widths[0])]
    limits = torch.full_like(found, 10 * tolerance * float(each[0].abs().amax()))
    if bool(((found - each[0]).abs() > limits).any()):
        each += [_differences(reference, directions, row, w) for w in widths[1:]]
    expected, _ = settled(found, each, limits)
    at = ((found - expected).abs() > limits).nonzero().flatten().tolist()
    if not at:
        return None
    c, of = at[0], directions.rows[0 if row is None else row]
    column = directions.columns[c]
    numbers = float(expected[c]), float(found[c])
    return WrongNumber(f"(gradient of {of.name})", column.name, of.t, column.s, None, *numbers)


def _first(
    view: View, directions: Directions, row: int | None, *at: object
) -> tuple[Tensor, list[Tensor]]:
    """A sum of gradients, as a number with a graph, and all that it depends on."""
    inputs, state = at
    sources = [*floats(inputs), *floats(state), *(p for _, p in view.parameters)]
    y, after = view.whole(inputs, state)
    dots = directions.dots([*floats(y), *floats(after)], view)
    scalar = dots.sum() if row is None else dots[row]
    if not scalar.requires_grad:
        return scalar * 0, sources
    first = torch.autograd.grad(scalar, sources, create_graph=True, allow_unused=True)
    return directions.along(list(first), view).sum(), sources


def _second(view: View, directions: Directions, row: int | None) -> Tensor:
    number, sources = _first(view, directions, row, *view.leaves())
    if not number.requires_grad:
        return torch.zeros(len(directions.columns), dtype=torch.float64)
    found = torch.autograd.grad(number, sources, allow_unused=True)
    return directions.along(list(found), view).detach().cpu()


def _differences(view: View, directions: Directions, row: int | None, width: float) -> Tensor:
    def leaf(v: Tensor) -> Tensor:
        return v.detach().requires_grad_(is_float(v))

    found = []
    for c in range(len(directions.columns)):
        each = []
        for k in (-2, -1, 1, 2):
            at = moved(view, directions, c, k * width)
            with parameter_moved(view, directions, c, k * width):
                number, _ = _first(view, directions, row, *(map_tensors(leaf, v) for v in at))
            each.append(number.detach())
        near, left, right, far = each
        found.append((8 * (right - left) - (far - near)) / (12 * width))
    return torch.stack(found).cpu() if found else torch.zeros(0, dtype=torch.float64)
