"""A module's gradients beside finite differences, by blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bptt._src.module_check.blocks import (
    Directions,
    by_autograd,
    by_differences,
    first_difference,
    thresholds,
)
from bptt._src.module_check.result import WrongNumber
from bptt._src.module_check.same import tolerances, value_difference
from bptt._src.module_check.view import View, can_be_cut, floats


@dataclass(frozen=True)
class Measured:
    """A module's gradients and finite differences, by blocks."""

    view: View
    reference: View
    directions: Directions
    found: Tensor
    expected: Tensor
    """Differences; where they do not settle, what was found."""
    limits: Tensor
    unsettled: int
    """The number of blocks whose differences do not settle."""

    def first(self, *, final: bool | None = None) -> tuple[WrongNumber, int, int] | None:
        """Find the first wrong block, of outputs or of final states."""
        return first_difference(
            self.directions, self.found, self.expected, self.limits,
            lambda row: final in (None, row.is_final),
        )  # fmt: skip


def measured(view: View, reference: View) -> Measured:
    """Compare a module's gradients with finite differences of the reference."""
    directions = Directions.of(view)
    found = by_autograd(view, view.whole, directions)
    widths, tolerance = precision(view, reference)
    each = [by_differences(reference, reference.whole, directions, widths[0])]
    limits = thresholds(directions, each[0], tolerance)
    if bool((~((found - each[0]).abs() <= limits)).any()):
        each += [by_differences(reference, reference.whole, directions, w) for w in widths[1:]]
        limits = thresholds(directions, torch.stack(each).abs().amin(0), tolerance)
    expected, unsettled = settled(found, each, limits)
    return Measured(view, reference, directions, found, expected, limits, unsettled)


def precision(view: View, reference: View) -> tuple[tuple[float, ...], float]:
    """Return the widths of differences that fit the reference's precision, and the tolerance."""
    with torch.no_grad():
        own = view.whole(view.inputs, view.state)
    _, tolerance = tolerances(own, view.inputs, [p for _, p in view.parameters])
    coarsest = max(
        (torch.finfo(v.dtype).eps for v in floats((reference.inputs, reference.state))), default=0.0
    )
    coarsest = max([coarsest, *(torch.finfo(p.dtype).eps for _, p in reference.parameters)])
    if coarsest > 1e-10:
        return (3e-2, 1e-2, 1e-1), max(tolerance, coarsest**0.35)
    return (1e-4, 1e-6, 1e-3), tolerance


def settled(found: Tensor, each: list[Tensor], limits: Tensor) -> tuple[Tensor, int]:
    """Choose the differences to believe: those that agree with what was found, or with each other.

    Args:
        found: the gradients.
        each: differences of several widths.
        limits: what two numbers may differ by.

    Returns:
        The expected gradients, and in how many places no two widths agree with each other, nor one
        with what was found, which stands there instead.
    """
    widths = torch.stack(each)
    nearest = (widths - found).abs().nan_to_num(float("inf")).argmin(0)
    expected = widths.gather(0, nearest[None])[0]
    agrees = (found - expected).abs() <= limits
    same = torch.zeros_like(agrees)
    for i in range(len(each)):
        for j in range(i):
            same |= (each[i] - each[j]).abs() <= limits
    lost = ~agrees & ~same
    return torch.where(lost, found, torch.where(agrees, expected, each[0])), int(lost.sum())


def located(found: Measured, problem: WrongNumber, row: int, column: int) -> WrongNumber:
    """Tell from which step on a parameter's gradient is wrong: that of the steps s..t, run alone.

    Args:
        found: what was measured.
        problem: the first wrong block.
        row: its row.
        column: its column.
    """
    view, reference, t = found.view, found.reference, found.directions.rows[row].t
    if not found.directions.columns[column].is_parameter or not can_be_cut(view):
        return problem
    states, at_reference = view.reached(), reference.reached()
    widths, tolerance = precision(view, reference)
    for s in reversed(range(t + 1)):
        piece, other = view.part(s, t + 1, states[s]), reference.part(s, t + 1, at_reference[s])
        directions = Directions.of(piece)
        r = [(row.name, row.t) for row in directions.rows].index((problem.of, t - s))
        c = [column.name for column in directions.columns].index(str(problem.by))
        gradient = float(by_autograd(piece, piece.whole, directions, [r])[0, c])
        expected = float(by_differences(other, other.whole, directions, widths[0], [c])[r, 0])
        if abs(gradient - expected) > tolerance * max(1.0, abs(expected)):
            return replace(problem, s=s)
    return problem


def reference_for(view: View, exact: View | None) -> View:
    """Return the double-precision copy, where it computes the same, else the module itself.

    A random mask, for instance, may be another one in double precision.
    """
    if exact is None:
        return view
    with torch.no_grad():
        own, other = (v.whole(v.inputs, v.state) for v in (view, exact))
    return view if value_difference(view, own, other) is not None else exact
