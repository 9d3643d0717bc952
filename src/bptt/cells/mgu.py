"""The minimal gated unit: one step, with one gate in the place of the GRU's two.

    f_t = σ(W_if x_t + b_if + W_hf h_{t-1} + b_hf)        forget gate
    q_t =                     W_hn h_{t-1} + b_hn
    n_t = tanh(W_in x_t + b_in + f_t ⊙ q_t)               candidate
    h_t = (1 - f_t) ⊙ h_{t-1} + f_t ⊙ n_t

G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, "Minimal gated unit for recurrent neural networks",
International Journal of Automation and Computing 13 (2016), arXiv:1603.09420. There the gate
multiplies h_{t-1} before the product with W_hn; here, as in torch.nn's GRU, after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bptt.cells.cell import Cell, Keeping
from bptt.cells.weights import Blocks, State


def gates(x: Blocks, h: Blocks, state: State, units: Blocks) -> dict[str, Tensor]:
    """Compute f_t."""
    return {"forget": torch.sigmoid(x[0] + h[0])}


def equations(x: Blocks, h: Blocks, state: State, units: Blocks) -> State:
    """Compute h_t; as :attr:`bptt.Cell.equations`, blocks in the order f, n."""
    (f,) = gates(x, h, state, units).values()
    n = torch.tanh(x[1] + f * h[1])
    return ((1 - f) * state[0] + f * n,)


KEEPING = Keeping("forget", block=0, sign=-1)  # it forgets where the gate is open
MGU = Cell("MGU", 2, 2, equations, is_native=True, gates=gates, keeping=KEEPING)
