"""The native kernels: the losses of a linear readout.

What each field of a call means is in ``csrc/bptt_kernels.h``.
"""

from __future__ import annotations

import struct

import torch

from bptt._src.engines import threads
from bptt._src.engines.guard import addresses, dense
from bptt._src.engines.kernel_library import library, type_of
from bptt._src.engines.readout import Found, Readout

# The fields of a bptt_readout, in order; an address of 0 is none.
_READOUT = struct.Struct("=14q")


def refuses_readout(call: Readout) -> str | None:
    """Return why there is no native kernel for a readout; None where there is."""
    hidden, weight = call.hidden, call.weight
    if not hidden.is_cpu:
        return f"the input is on {hidden.device}"
    if hidden.dtype is not torch.float32 and hidden.dtype is not torch.float64:
        return f"there are none for {hidden.dtype}"
    return None if hidden.numel() and weight.numel() else "there is nothing to compute"


def cross_entropy(readout: Readout) -> Found:
    """Compute a readout's losses and their gradients, as :class:`engines.call.Engine` says."""
    hidden, weight, bias, targets, factors, needed, bf16 = readout
    (N, H), V, dtype = hidden.shape, len(weight), hidden.dtype
    given = (
        dense("hidden", hidden, dtype, (N, H)),
        dense("weight", weight, dtype, (V, H)),
        None if bias is None else dense("bias", bias, dtype, (V,)),
        dense("targets", targets, torch.int64, (N,)),
        None if factors is None else dense("the losses' factors", factors, dtype, (N,)),
    )
    losses = hidden.new_empty(N)
    found = [
        t.new_empty(t.shape) if t is not None and wanted else None
        for t, wanted in zip((hidden, weight, bias), needed, strict=True)
    ]
    call = _READOUT.pack(
        type_of(dtype, bf16),
        threads.allowed(),
        *(N, H, V),
        *addresses(*given, losses, *found),
    )
    if library().bptt_cross_entropy(call) != 0:
        raise MemoryError(f"bptt: no memory for the work space of {V} labels")
    return Found(losses, *found)
