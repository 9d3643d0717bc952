"""The initial state of a module's layers: what was given, checked, or zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.dtypes import check_dtype
from bptt._src.rows import Rows, order_of
from bptt.cells import State


def initial_state(
    called: str, rows: Rows, hx: Any, cells: int, sizes: tuple[int, ...], dtype: torch.dtype
) -> State:
    """Return the state, each of its tensors [L·D, B, size], in the rows' order.

    Args:
        called: the module's name, for errors.
        rows: the input.
        hx: the state that was given: a tensor, some, or None: zeros.
        cells: the number of layers times directions, L·D.
        sizes: of the state's tensors.
        dtype: of the weights.

    Raises:
        RuntimeError: its shape, dtype or device does not fit.
    """
    if hx is None:
        new = rows.x.new_zeros
        return tuple([new((cells, rows.batch, size), dtype=dtype) for size in sizes])
    shapes: list[tuple[int, ...]] = [(cells, rows.batch, size) for size in sizes]
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if rows.is_unbatched:
        shapes = [(cells, size) for size in sizes]
    for s in given:
        check_dtype(called, "the initial state", s, dtype)
        if s.device != rows.x.device:
            raise RuntimeError(
                f"{called}: the input and the initial state are not at the same device, found the "
                f"input at {rows.x.device} and the state at {s.device}"
            )
    if [tuple(s.shape) for s in given] != shapes:
        raise RuntimeError(
            f"{called}: expected an initial state of shape {_listed(shapes)} (layers times "
            f"directions, batch, size), got {_listed([tuple(s.shape) for s in given]) or 'nothing'}"
        )
    if rows.is_unbatched:
        given = tuple(s.unsqueeze(1) for s in given)
    order = order_of(rows.like, "sorted_indices")
    given = tuple(s.to(dtype) for s in given)
    return given if order is None else tuple(s.index_select(1, order) for s in given)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(s) for s in shapes)
