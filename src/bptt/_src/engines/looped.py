"""Cells of one's own, natively: their equations as programs that the kernel library runs.

The recursions over the steps, and the large products before and after them, are the library's; the
rest is the twin's.
"""

from __future__ import annotations

import warnings
from functools import lru_cache, partial

import torch
from torch import Tensor

from bptt._src.engines import native, twin
from bptt._src.engines.call import AnyCall, Call, Gradients, Incoming, Saved
from bptt._src.engines.guard import is_watched, only_by_autograd
from bptt._src.engines.loops.recursion import Looped, sizes_of, why_not
from bptt._src.engines.product import multiply
from bptt._src.engines.readout import Found, Readout
from bptt._src.uncompiled import at_compile_time, object_of
from bptt.cells import Cell, State, Weights

RECORDS = False


def serves(call: AnyCall) -> str | None:
    """Return why it cannot do this, as :class:`engines.call.Engine` says."""
    if not isinstance(call, Call):
        return "it runs layers alone"
    if is_watched():
        return "a mode of torch has to see each operation"
    reason = only_by_autograd(*call.tensors())
    if reason is None and not call.x.numel():
        reason = "the input is empty"
    return reason or refuses_kind(call.cell, call.x, call.w)


def refuses_kind(cell: Cell, x: Tensor, w: Weights, warns: bool = True) -> str | None:
    """Return why it cannot do calls like this one, whatever their lengths; None where it can.

    Args:
        cell: the cell.
        x: its input.
        w: its weights.
        warns: whether a cell whose equations cannot become a program causes a warning, once.
    """
    return native.refuses_tensors(x, w) or _why_not(id(cell), warns, *sizes_of(cell, w))


@at_compile_time
def _why_not(cell: int, warns: bool, *sizes: int | bool | torch.dtype) -> str | None:
    reason = why_not(object_of(cell), *sizes)
    if reason is not None and warns:
        _warn(reason)
    return reason


@lru_cache(maxsize=256)
def _warn(reason: str) -> None:
    """Warn once of a cell of one's own that is not native."""
    warnings.warn(f"bptt: {reason}; it runs in plain torch", RuntimeWarning, stacklevel=2)


def _looped(cell: Cell, _: Weights, bf16: bool) -> Looped:
    return Looped(cell, bf16)


_MEANS = [
    twin.Means(partial(_looped, bf16=bf16), partial(multiply, bf16=bf16)) for bf16 in (False, True)
]


_FEW = 16
"""Rows that are not worth rounding, as for the other kernels."""


def means(call: Call) -> twin.Means:
    """Return the recursion and the product that compute a call."""
    return _MEANS[call.bf16 and sum(call.steps.sizes) > _FEW]


def forward(call: Call, keep: bool) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.call.Engine` says."""
    return twin.forward(call, keep, means(call))


def backward(call: Call, saved: Saved, incoming: Incoming) -> Gradients:
    """Go back through it, as :class:`engines.call.Engine` says."""
    return twin.backward(call, saved, incoming, means(call))


def blocks(call: Call, before: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates before their nonlinearities, as :class:`engines.call.Engine` says."""
    w, multiply = call.w, means(call).multiply  # to the bit those of the run
    x, masks = call.cell.inputs_and_masks(call.x.flatten(0, -2), w)
    of_x = multiply(x, w.ih.t(), w.b_ih)
    of_x = of_x if masks is None else torch.cat([of_x, masks], 1)
    return of_x, multiply(before, w.hh.t(), w.b_hh)


def values(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates, as :class:`engines.call.Engine` says."""
    return None


other_states = twin.other_states


def cross_entropy(readout: Readout) -> Found:
    """Refuse: it runs layers alone."""
    raise NotImplementedError("bptt: programs have no readout")
