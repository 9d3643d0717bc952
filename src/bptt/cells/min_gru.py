"""The minimal GRU without a recurrent matrix: one step, whose gate and candidate see x_t alone.

    z_t = σ(W_iz x_t + b_iz)                              update gate
    n_t =   W_in x_t + b_in                               candidate
    h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ n_t

L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, "Were RNNs all we needed?",
arXiv:2410.01201 (2024). ``weight_hh`` has no rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bptt.cells.cell import Cell, Keeping
from bptt.cells.weights import Blocks, State


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute z_t."""
    return {"update": torch.sigmoid(x[0])}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, blocks in the order z, n."""
    (z,) = gates(x, h, state, units).values()
    return ((1 - z) * state[0] + z * x[1],)


MIN_GRU = Cell("MIN_GRU", 2, 0, equations, gates=gates, keeping=Keeping("update", 0, sign=-1))
