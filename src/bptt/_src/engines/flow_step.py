"""The native kernel for many losses on their way back through one step: ``csrc/flow.h``.

Its twin in plain torch is in ``bptt/_src/flow/step_matrix.py``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.call import FlowCall
from bptt._src.engines.guard import address, addresses, dense, room, within
from bptt._src.engines.kernel_library import library

# The fields of a bptt_flow_step, in order; an address of 0 is none.
_STEP = struct.Struct("=34q")


class Terms(NamedTuple):
    """Of which results and blocks of weights there are derivatives, as the library takes it."""

    of_c: int
    """How many there are of the second result; they come first."""
    of_h: int
    """And of the first."""
    blocks: Any
    """The number of each one's block."""
    least: int
    """How many blocks the weights must have at least."""

    @classmethod
    def of(cls, places: Sequence[tuple[int, int]]) -> Terms:
        """Take the number of the result and of the block of each."""
        of_c, numbers = sum(result == 1 for result, _ in places), [block for _, block in places]
        blocks = (ctypes.c_int64 * max(1, len(places)))(*numbers)
        return cls(of_c, len(places) - of_c, blocks, max(numbers, default=-1) + 1)


class Step(NamedTuple):
    """A layer's step of S sequences: compare :class:`flow.derivatives.Locals`."""

    of_hidden: Float[Tensor, "sequences terms_h hidden"]
    of_input: Float[Tensor, "sequences terms_x hidden"]
    of_results: Float[Tensor, "sequences hidden"] | None
    """∂h/∂(the second result)."""
    of_state: tuple[Float[Tensor, "sequences hidden"] | None, ...]
    """∂(result)/∂(tensor of the state before), of the pairs in :data:`OF_STATE`."""
    w_hh: Float[Tensor, "blocks_h output"]
    w_ih: Float[Tensor, "blocks_x input"] | None
    projected: Float[Tensor, "sequences gates hidden"] | None
    d_m: Float[Tensor, "sequences losses hidden"] | None
    """∂L/∂m of the losses on their way, where h is a projection of m."""


OF_STATE = ((0, 0), (1, 1), (1, 0), (0, 1))
"""The numbers of result and tensor, in the order of a bptt_flow_step."""


def refuses(call: FlowCall) -> str | None:
    """Return why there is no kernel for a layer; None where there is one."""
    cell, x, w = call
    if cell.states > 2:
        return f"there are none for the {cell.states} states of {cell.name}"
    if not x.is_cpu:
        return f"the input is on {x.device}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"there are none for {x.dtype}"
    return None if w.ih.dtype is w.hh.dtype is x.dtype else f"the weights are not all {x.dtype}"


def back(
    step: Step,
    of_hidden: Terms,
    of_input: Terms,
    resets: Bool[Tensor, "sequences 1"] | None,
    given: list[Tensor],
    losses: slice,
    norms: list[Tensor],
    d_x: Tensor | None,
    credit: Tensor | None,
) -> None:
    """Take gradients through a step, in place.

    Args:
        step: the step.
        of_hidden: of what its ``of_hidden`` are derivatives.
        of_input: and its ``of_input``.
        resets: where the state is set to zero before the step.
        given: ∂L/∂h, [S, N, P], and where there are two states ∂L/∂c, [S, N, H]: in, out.
        losses: the D of N losses that are on their way.
        norms: filled with the norms of both, [S, D] float64, N from one sequence to the next.
        d_x: filled with ∂L/∂x, [S, D, I], or None.
        credit: filled with ⟨∂L/∂x, x⟩, laid out as the norms, or None.

    Raises:
        MemoryError: there is none for the matrices.
    """
    (S, N, P), dtype = given[0].shape, given[0].dtype
    D, hidden = losses.stop - losses.start, step.of_hidden.shape[2]
    inputs = 0 if step.w_ih is None else step.w_ih.shape[1]
    gates_x = of_input.least if step.projected is None else step.projected.shape[1]
    least = of_hidden.least * hidden, of_input.least * hidden
    each = (S, hidden)
    shapes = [
        (S, of_hidden.of_c + of_hidden.of_h, hidden),
        (S, of_input.of_c + of_input.of_h, hidden),
        *(each,) * 5,
        (max(least[0], len(step.w_hh)), P),
        (least[1] if step.w_ih is None else max(least[1], len(step.w_ih)), inputs),
        (S, max(gates_x, of_input.least), hidden),
        (S, D, hidden),
    ]
    operands = (*step[:3], *step.of_state, *step[4:])
    held = [
        None if t is None else dense(name, t, dtype, shape)
        for name, t, shape in zip(_NAMES, operands, shapes, strict=True)
    ]
    if resets is not None:
        resets = dense("resets", resets, torch.bool, (S, 1))
    places = []
    for t, width in zip(given, (P, hidden), strict=False):
        start = address(room("given", t, dtype, (S, N, width)))
        places.append(start + losses.start * width * t.element_size())
    for t in norms if credit is None else (*norms, credit):
        within("norms", t, torch.float64, (S, D), (N, 1))
    if d_x is not None:
        d_x = room("d_x", d_x, dtype, (S, D, inputs))
    of_h, of_x, *others, d_m = addresses(*held)
    call = _STEP.pack(
        dtype is torch.float64,
        threads.allowed(),
        *(S, D, inputs, hidden, P, len(given), N),
        *(of_hidden.of_c, of_hidden.of_h, ctypes.addressof(of_hidden.blocks), of_h),
        *(of_input.of_c, of_input.of_h, ctypes.addressof(of_input.blocks), of_x),
        *(*others, gates_x, 0 if resets is None else address(resets), d_m),
        *(places if len(places) == 2 else (places[0], 0)),
        *addresses(d_x, credit, norms[0], norms[1] if len(norms) == 2 else None),
    )
    if library().bptt_flow_back(call) != 0:
        raise MemoryError(f"bptt: no memory for the matrices of {hidden} hidden units")


_NAMES = (*Step._fields[:3], *("of_state",) * 4, *Step._fields[4:])
