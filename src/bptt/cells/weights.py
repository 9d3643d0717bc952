"""The tensors of a cell: its state, and the parameters of a layer."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Inexact
from torch import Tensor

State = tuple[Tensor, ...]
"""A cell's state: ``(h,)`` for the Elman network and the GRU, ``(h, c)`` for the LSTM.

Each is ``[B, H]``; with a projection the first is ``[B, P]``. The first is the output.
"""

Blocks = tuple[Tensor, ...]
"""Blocks of H numbers for each row, each ``[B, H]``, or for each unit, ``[H]``."""


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in torch.nn's layout.

    G is the number of blocks of H rows, ``gates_x`` or ``gates_h`` of the cell, P the size of the
    output: H, or ``proj_size`` where there is a projection.
    """

    ih: Inexact[Tensor, "gates input"]
    """``weight_ih``, [G·H, I]."""
    hh: Inexact[Tensor, "of_h output"]
    """``weight_hh``, [G·H, P]."""
    b_ih: Inexact[Tensor, " gates"] | None = None
    """``bias_ih``, [G·H], or None."""
    b_hh: Inexact[Tensor, " of_h"] | None = None
    """``bias_hh``, [G·H], or None."""
    hr: Inexact[Tensor, "output hidden"] | None = None
    """``weight_hr``, [P, H]: a projection, or None."""
    units: Inexact[Tensor, "per_unit hidden"] | None = None
    """``weight_units``, [U, H]: the weights that each unit has for itself, or None."""


WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_units")
"""What the fields of :class:`Weights` are called in a module, without the number of the layer."""
