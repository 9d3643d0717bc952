"""Whether a gradient is a surrogate, to which finite differences do not apply.

A surrogate gradient is not the derivative of the values: a spike jumps from 0 to 1, so that its
differences are zero, and the module says otherwise on purpose (Neftci et al., "Surrogate gradient
learning in spiking neural networks", IEEE Signal Processing Magazine, 2019). A smooth step with a
mistake disagrees with its differences in the same way. What tells them apart is the jump: along the
direction in which a single step disagrees, the step's values have a discontinuity, which bisection
finds, or do not change at all.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from bptt._src.module_check.blocks import Directions, moved, parameter_moved
from bptt._src.module_check.differences import measured
from bptt._src.module_check.view import View, can_be_cut, floats


def is_surrogate(view: View) -> bool:
    """Whether the first single step that disagrees with its differences has no derivative there.

    Its values jump along what it is differentiated by, or an input or state does not change them
    at all, as where a neuron never fires.
    """
    states = view.reached() if can_be_cut(view) else [view.state] * view.layout.steps
    for t in range(view.layout.steps):
        step = view.part(t, t + 1, states[t])
        found = measured(step, step)
        errors = (found.found - found.expected).abs() / found.limits.clamp_min(1e-300)
        if bool((errors > 1).any()):
            places = {c: rows for c in range(len(found.directions.columns))
                      if len(rows := (errors[:, c] > 0.01).nonzero().flatten())}  # fmt: skip
            return any(_has_no_derivative(step, found.directions, c, r) for c, r in places.items())
    return False


def _has_no_derivative(
    view: View,
    directions: Directions,
    column: int,
    rows: Tensor,
    reach: float = 16.0,
    points: int = 33,
) -> bool:
    """Whether a single step's values jump along a column's direction, or stay as they are.

    They are computed at points of a line, and the intervals at whose ends they bend most are
    bisected; where the change is still there in an interval of the width of rounding, it is a jump.

    Args:
        view: a single step, so that a row is a tensor that it returns.
        directions: the directions.
        column: what is moved.
        rows: the tensors whose derivative is in question.
        reach: how far it is moved.
        points: how often it is computed.
    """

    def values(at: float) -> Tensor:
        inputs, state = moved(view, directions, column, at)
        with torch.no_grad(), parameter_moved(view, directions, column, at):
            of = floats(view.whole(inputs, state))
        return torch.cat([of[r].double().flatten().nan_to_num() for r in rows.tolist()])

    line = [-reach + 2 * reach * k / (points - 1) for k in range(points)]
    each = [values(at) for at in line]
    if all(torch.equal(v, each[0]) for v in each):
        return not directions.columns[column].is_parameter
    steps = [b - a for a, b in pairwise(each)]
    least = 1e-5 * float(torch.stack(each).abs().amax().clamp_max(1e6))
    bends = [float((b - a).abs().amax()) for a, b in pairwise(steps)]
    largest = [max(bends[max(k - 1, 0) : k + 1]) for k in range(len(steps))]
    for k in sorted(range(len(steps)), key=lambda k: -largest[k])[:4]:
        a, b, at_a, at_b = line[k], line[k + 1], each[k], each[k + 1]
        while float((at_b - at_a).abs().amax()) > least:
            if b - a < 1e-9:
                return True
            middle = (a + b) / 2
            at = values(middle)
            if float((at - at_a).abs().amax()) > float((at_b - at).abs().amax()):
                b, at_b = middle, at
            else:
                a, at_a = middle, at
    return False
