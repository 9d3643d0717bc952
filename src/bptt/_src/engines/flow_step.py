"""The native kernel for many losses on their way back through one step: ``csrc/flow.h``.

Its twin in plain torch is in ``bptt/_src/flow/step_matrix.py``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.guard import addresses, dense, room, within
from bptt._src.engines.kernel_library import library
from bptt.cells import Weights

# The fields of a bptt_flow_step, in order; an address of 0 is none.
_STEP = struct.Struct("=24q")


class Step(NamedTuple):
    """A layer's step of S sequences: compare :class:`flow.derivatives.Locals`."""

    of_hidden: Float[Tensor, "sequences gates hidden"]
    of_input: Float[Tensor, "sequences gates hidden"]
    through: Float[Tensor, "sequences hidden"] | None
    kept: Float[Tensor, "sequences hidden"] | None
    w_hh: Float[Tensor, "gates_hidden output"]
    w_ih: Float[Tensor, "gates_hidden input"] | None
    projected: Float[Tensor, "sequences gates hidden"] | None
    resets: Bool[Tensor, "sequences 1"] | None


def serves(x: Tensor, w: Weights) -> bool:
    """Whether there is a kernel for this layer: on the processor, float32 or float64."""
    return (
        x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and w.ih.dtype is x.dtype
        and w.hh.dtype is x.dtype
    )


def back(
    step: Step,
    given: list[Tensor],
    d_m: Tensor | None,
    norms: list[Tensor],
    d_x: Tensor | None,
    credit: Tensor | None,
) -> None:
    """Take gradients through a step, in place.

    Args:
        step: the step.
        given: ∂L/∂h, [S, D, P], and for the LSTM ∂L/∂c, [S, D, H]: in, out. The first D losses of
            the same larger number; the losses of a sequence are dense.
        d_m: ∂L/∂m, [S, D, H], where the LSTM has a projection, or None.
        norms: filled with the norms of both, [S, D] float64, of the same larger number.
        d_x: filled with ∂L/∂x, [S, D, I], or None.
        credit: filled with ⟨∂L/∂x, x⟩, laid out as the norms, or None.

    Raises:
        MemoryError: there is none for the matrices.
    """
    (S, D, P), dtype = given[0].shape, given[0].dtype
    gates, hidden = step.of_hidden.shape[1:]
    inputs = 0 if step.w_ih is None else step.w_ih.shape[1]
    shapes: list[tuple[int, ...]] = [
        (S, gates, hidden),
        (S, gates, hidden),
        (S, hidden),
        (S, hidden),
        (gates * hidden, P),
        (gates * hidden, inputs),
        (S, gates, hidden),
        (S, 1),
        (S, D, hidden),
    ]
    names = (*step._fields, "d_m")
    held = [
        None if t is None else dense(name, t, torch.bool if name == "resets" else dtype, shape)
        for name, t, shape in zip(names, (*step, d_m), shapes, strict=True)
    ]
    apart = norms[0].stride(0) if S > 1 else max(D, norms[0].stride(0))
    for t, width in zip(given, (P, hidden), strict=False):
        within("given", t, dtype, (S, D, width), (apart * width, width, 1))
    for t in norms if credit is None else (*norms, credit):
        within("norms", t, torch.float64, (S, D), (apart, 1))
    if d_x is not None:
        d_x = room("d_x", d_x, dtype, (S, D, inputs))
    call = _STEP.pack(
        dtype is torch.float64,
        threads.allowed(),
        *(S, D, inputs, hidden, P, gates, apart),
        *addresses(*held, given[0], given[1] if len(given) == 2 else None),
        *addresses(d_x, credit, norms[0], norms[1] if len(given) == 2 else None),
    )
    if library().bptt_flow_back(call) != 0:
        raise MemoryError(f"bptt: no memory for the matrices of {hidden} hidden units")
