"""What ``torch.load(weights_only=True)`` may read: classes that hold data and run nothing of it."""

from __future__ import annotations

import torch

from bptt import cells
from bptt._src.lru import LRU
from bptt._src.recurrent import GRU, LSTM, RNN, Recurrent
from bptt._src.unroll.stepwise import Stepwise
from bptt._src.unroll.stream import Stream
from bptt.cells.recursion import Recursion
from bptt.credit import Adaptive, Block, Full, Online, OnlineState, Plan, Randomized, Truncated
from bptt.memory import Recompute, Store


def register() -> None:
    """Let ``torch.load`` read a module, a credit, a plan or a stream with ``weights_only=True``."""
    torch.serialization.add_safe_globals(
        [
            *(RNN, GRU, LSTM, LRU, Recurrent, Stepwise, Stream),
            *(Full, Truncated, Randomized, Adaptive, Plan, Block, Store, Recompute),
            *(Online, OnlineState),
            *(cells.Cell, cells.Nonlinearity, cells.Keeping, cells.Leak, Recursion, cells.named),
        ]
    )
