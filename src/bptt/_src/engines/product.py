"""Large matrix products by the kernel library, with the same bits for any number of threads."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.guard import address, dense
from bptt._src.engines.kernel_library import library, type_of

_PRODUCT = struct.Struct("=11q")


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None, bf16: bool = False) -> Tensor:
    """Return a b + bias, for matrices that are dense, or the transposes of such.

    Args:
        a: [M, K], float32 or float64.
        b: [K, N].
        bias: [N].
        bf16: whether both sides may be rounded to bfloat16, if the library has such products.

    Raises:
        MemoryError: there is none for the work space.
    """
    (M, K), N = a.shape, b.shape[1]
    if not (M and K and N):
        return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    c = a.new_empty(M, N)
    sides, of = [], []
    for t in (a, b):
        is_transposed = not t.is_contiguous() and t.t().is_contiguous()
        side = t.t() if is_transposed else t
        sides.append(dense("a side of a product", side, a.dtype, tuple(side.shape)))
        of.append(is_transposed)
    if bias is not None:
        bias = dense("bias", bias, a.dtype, (N,))
    call = _PRODUCT.pack(
        *(type_of(a.dtype, bf16), threads.allowed(), M, K, N, *of),
        *(address(sides[0]), address(sides[1]), 0 if bias is None else address(bias), address(c)),
    )
    if library().bptt_multiply(call) != 0:
        raise MemoryError(f"bptt: no memory for a product of {M} by {K} by {N} numbers")
    return c
