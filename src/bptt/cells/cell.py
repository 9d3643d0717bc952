"""What a cell is: one step of a recurrent network, and the sizes that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Inexact
from torch import Tensor

State = tuple[Tensor, ...]
"""A cell's state: ``(h,)`` for the Elman network and the GRU, ``(h, c)`` for the LSTM.

Each is ``[B, H]``; the h of an LSTM with a projection is ``[B, P]``. The first is the output.
"""


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in torch.nn's layout.

    G is the number of blocks of H rows that the cell has (1, 3 or 4), P the size of the
    output: H, or ``proj_size`` for an LSTM with a projection.
    """

    ih: Inexact[Tensor, "gates input"]
    """``weight_ih``, [G·H, I]."""
    hh: Inexact[Tensor, "gates output"]
    """``weight_hh``, [G·H, P]."""
    b_ih: Inexact[Tensor, " gates"] | None = None
    """``bias_ih``, [G·H], or None."""
    b_hh: Inexact[Tensor, " gates"] | None = None
    """``bias_hh``, [G·H], or None."""
    hr: Inexact[Tensor, "output hidden"] | None = None
    """``weight_hr``, [P, H]: an LSTM's projection, or None."""


WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""What torch.nn calls the fields of :class:`Weights`, without the number of the layer."""


@dataclass(frozen=True)
class Cell:
    """One step of a recurrent network, differentiable by autograd any number of times."""

    mode: str
    """torch.nn's name for it: ``"RNN_TANH"``, ``"GRU"``, ``"LSTM"``..."""
    gates: int
    """Blocks of H rows in ``weight_ih`` and ``weight_hh``."""
    states: int
    """Tensors in the state: 1, or 2 for the LSTM."""
    step: Callable[[Tensor, State, Weights], State]
    """``(x_t [B, I], state, weights) -> state``."""
