"""Two ways of running a module, compared in values and in gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.module_check.blocks import Directions, by_autograd, first_difference
from bptt._src.module_check.result import Check, WrongNumber, passed, wrong
from bptt._src.module_check.view import Run, View, floats


def tolerances(*of: Any) -> tuple[float, float]:
    """Return what values and gradients may differ by, relative to the largest.

    These are ε^0.6 and ε^0.5 for the coarsest dtype among the tensors: 4e-10 and 1.5e-8 in double
    precision, 7e-5 and 3e-4 in single precision.
    """
    dtypes = [v.dtype for tree in of for v in floats(tree)]
    epsilon = max((torch.finfo(d).eps for d in dtypes), default=torch.finfo(torch.float64).eps)
    return epsilon**0.6, epsilon**0.5


def same_runs(view: View, name: str, found: Run, expected: Run, what: str, remedy: str) -> Check:
    """Check that two runs agree, in the values of every step and in the gradients of every block.

    Args:
        view: the module.
        name: of the check.
        found: the run to check.
        expected: the one that is right.
        what: what was compared, for the table.
        remedy: what a difference means.
    """
    with torch.no_grad():
        first, second = (run(view.inputs, view.state) for run in (found, expected))
    shapes = shape_difference(first, second)
    if shapes:
        return wrong(name, f"{shapes}: {remedy}")
    problem = value_difference(view, first, second)
    if problem is not None:
        return wrong(name, remedy, problem)
    directions = Directions.of(view, expected)
    gradients = by_autograd(view, found, directions), by_autograd(view, expected, directions)
    _, tolerance = tolerances(first, view.inputs, [p for _, p in view.parameters])
    at = first_difference(directions, *gradients, tolerance)
    if at is not None:
        return wrong(name, f"the values agree, the gradients do not: {remedy}", at[0])
    return passed(name, what)


def shape_difference(found: Any, expected: Any) -> str:
    """Describe how the tensors of two results differ in number or shape; "" if they do not."""
    shapes = [[tuple(v.shape) for v in floats(tree)] for tree in (found, expected)]
    return "" if shapes[0] == shapes[1] else f"expected shapes {shapes[1]}, found {shapes[0]}"


def value_difference(
    view: View, found: tuple[Any, Any], expected: tuple[Any, Any], states: bool = True
) -> WrongNumber | None:
    """Find the first step, and sequence, at which two results differ in their values.

    Args:
        view: the module.
        found: outputs and final state.
        expected: the right ones.
        states: whether final states are compared, too.
    """
    tolerance, _ = tolerances(found, view.inputs, [p for _, p in view.parameters])
    layout, ys = view.layout, (floats(found[0]), floats(expected[0]))
    names = ["y"] if len(ys[0]) == 1 else [f"y[{k}]" for k in range(len(ys[0]))]
    places = []
    for order, (name, a, b) in enumerate(zip(names, *ys, strict=True)):
        problem = _first(name, a, b, tolerance, layout.time, _batch(view, 1 - layout.time))
        if problem is not None:
            places.append((problem.t, order, problem))
    if places:
        return min(places, key=lambda place: place[:2])[2]
    if not states:
        return None
    of_state = view.state_names(found[1], "n")
    for name, a, b in zip(of_state, floats(found[1]), floats(expected[1]), strict=True):
        problem = _first(name, a, b, tolerance, None, _batch(view, layout.state_dim))
        if problem is not None:
            return WrongNumber(
                name, None, layout.steps - 1, None, problem.sequence, problem.expected,
                problem.found,
            )  # fmt: skip
    return None


def _first(
    name: str,
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    time: int | None,
    batch: int | None,
) -> WrongNumber | None:
    a, b = (torch.view_as_real(v) if v.is_complex() else v for v in (found, expected))
    a, b = a.detach().double(), b.detach().double()
    most = float(b.abs().nan_to_num().amax()) if b.numel() else 0.0
    far = ~(((a - b).abs() <= tolerance * most) | (a == b) | (a.isnan() & b.isnan()))
    if not far.any():
        return None
    order = [d for d in (time, batch) if d is not None]
    rest = [d for d in range(far.dim()) if d not in order]
    at = far.permute(*order, *rest).nonzero()[0].tolist()
    place = dict(zip([*order, *rest], at, strict=True))
    index = tuple(place[d] for d in range(far.dim()))
    t = None if time is None else place[time]
    sequence = None if batch is None else place[batch]
    return WrongNumber(name, None, t, None, sequence, float(b[index]), float(a[index]))


def _batch(view: View, dim: int) -> int | None:
    return None if view.layout.batch is None else dim
