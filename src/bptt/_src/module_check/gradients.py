"""Gradients, by blocks, against finite differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bptt._src.module_check.blocks import by_differences, first_difference, too_small
from bptt._src.module_check.differences import Measured, located, measured, precision
from bptt._src.module_check.result import Check, passed, skipped, wrong
from bptt._src.module_check.surrogate import is_surrogate
from bptt._src.module_check.view import View, floats

SURROGATE = (
    "the derivative of a step is not the derivative of its values, which jump (a surrogate "
    "gradient); single steps has the gradients compared with those of the module stepped"
)
UNSETTLED = (
    "finite differences do not settle: the values jump, or are computed in a lower precision inside"
)


def gradients(
    view: View, reference: View, rows: Mapping[str, bool | None], surrogate: bool | None = None
) -> tuple[list[Check], bool | None]:
    """Check the gradients of outputs and of final states, by all that they depend on.

    Args:
        view: the module.
        reference: where differences are taken, if possible in double precision.
        rows: the names of the checks, each of final states (True), outputs (False), or both (None).
        surrogate: whether the module's gradient is known to be a surrogate.

    Returns:
        The checks, and whether the gradient is a surrogate: None if there was no reason to ask.
    """
    if not precise_enough(reference):
        why = "finite differences need single precision at least, and no such copy could be made"
        return [skipped(name, why) for name in rows], surrogate
    found = measured(view, reference)
    if found.first() is not None:
        surrogate = is_surrogate(reference) if surrogate is None else surrogate
        if surrogate:
            return [_surrogate(found, name, final) for name, final in rows.items()], True
    return [_judged(found, name, final) for name, final in rows.items()], surrogate


def precise_enough(reference: View) -> bool:
    """Whether differences can be taken in this precision."""
    of = [*floats(reference.inputs), *(p for _, p in reference.parameters)]
    return all(torch.finfo(v.dtype).eps < 1e-4 for v in of)


def _judged(found: Measured, name: str, final: bool | None) -> Check:
    at = found.first(final=final)
    if at is not None:
        problem = located(found, *at)
        return wrong(name, "expected: finite differences, along random directions", problem)
    if found.unsettled:
        return skipped(name, f"{found.unsettled} of {found.found.numel()} blocks: {UNSETTLED}")
    rows = [r for r in found.directions.rows if final in (None, r.is_final)]
    columns = found.directions.columns
    by = list(dict.fromkeys(c.name for c in columns if not c.is_parameter))
    count = sum(c.is_parameter for c in columns)
    by += [f"{count} parameter{'s' if count > 1 else ''}"] if count else []
    what = f"{', '.join(dict.fromkeys(r.name for r in rows))} by {', '.join(by)}: "
    what += f"{len(rows) * len(columns)} blocks (t, s) equal finite differences"
    faint = too_small(found.directions, found.found, found.limits)
    if faint and not final:
        what += f"; of all blocks {faint} are too small beside the others to be judged"
    return passed(name, what)


def _surrogate(found: Measured, name: str, final: bool | None) -> Check:
    """Look for what is wrong of a surrogate gradient, too: a tensor without any."""
    directions = found.directions
    width = precision(found.view, found.reference)[0][1]
    slopes = by_differences(found.reference, found.reference.whole, directions, width)
    for of in dict.fromkeys(r.name for r in directions.rows if final in (None, r.is_final)):
        rows = torch.tensor([r.name == of for r in directions.rows])
        expected = torch.where(rows[:, None], slopes, found.found)
        at = first_difference(directions, found.found, expected, 1e-3)
        if at is not None and not found.found[rows].any():
            return wrong(name, f"no gradient at all arrives at {of}, whose values change", at[0])
    return skipped(name, SURROGATE)
