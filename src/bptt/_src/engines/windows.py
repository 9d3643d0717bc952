"""Windows that overlap, side by side as one batch.

The losses of a plan's blocks travel back independently of each other, over states that are all
there already. So the recursion of the deltas runs over all windows at once: as many sequences as
there are windows, as many steps as the longest one has. Row number u·(windows) + w of this layout
is the u-th step, counted backwards, of window w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from bptt._src.credit.plan import Block
from bptt._src.steps import Steps


@dataclass(frozen=True)
class Windows:
    """Where the rows of the windows come from, and where what is found there goes."""

    steps: Steps
    """The windows as sequences, longest first, each from its last step to its first."""
    rows: Int64[Tensor, " windowed"]
    """The row of the sequence that each row of the windows is a copy of."""
    own: Int64[Tensor, " rows"]
    """For each row of the sequence, its copy in the window of its own loss."""
    last: Int64[Tensor, " batch"]
    """For each sequence, the window that holds its last loss; the final state's belongs to it."""
    first: Int64[Tensor, " starting"]
    """The windows that begin with the first step, and so reach the initial state,"""
    of_first: Int64[Tensor, " starting"]
    """and the sequence that each of them belongs to."""

    def to(self, device: torch.device) -> Windows:
        """Move the indices to a device."""
        if self.rows.device == device:
            return self
        return Windows(self.steps, *(t.to(device) for t in self._indices()))

    def _indices(self) -> Iterator[Tensor]:
        return iter((self.rows, self.own, self.last, self.first, self.of_first))


@lru_cache(maxsize=16)
def windows_of(blocks: tuple[Block, ...], sizes: tuple[int, ...]) -> Windows:
    """Lay out the windows of a plan over the rows of a batch.

    Args:
        blocks: of the plan.
        sizes: how many sequences are still running at each step, as in :class:`Steps`.

    >>> w = windows_of((Block(0, 2, 0), Block(2, 4, 1)), (1, 1, 1, 1))
    >>> w.steps.sizes, w.rows.tolist()
    ((2, 2, 1), [3, 1, 2, 0, 1])
    """
    running = np.array(sizes)
    offsets = np.concatenate([[0], np.cumsum(running)])
    lengths = (running[:, None] > np.arange(running[0])).sum(0)  # of each sequence
    begins, ends, edges = (np.array(column)[:, None] for column in zip(*blocks, strict=True))
    # Every pair of a block and a sequence that is still running when the block begins.
    block, sequence = np.nonzero(begins < lengths)
    begin, edge = begins[block, 0], edges[block, 0]
    last = np.minimum(ends[block, 0], lengths[sequence]) - 1
    order = np.argsort(-(last - edge), kind="stable")
    begin, edge, last, sequence = begin[order], edge[order], last[order], sequence[order]
    length = last - edge + 1

    counts = (length[:, None] > np.arange(length[0])).sum(0)
    rows, own = [], np.empty(offsets[-1], np.int64)
    for u, n in enumerate(counts):
        t = last[:n] - u
        row = offsets[t] + sequence[:n]
        mine = t >= begin[:n]
        own[row[mine]] = counts[:u].sum() + np.nonzero(mine)[0]
        rows.append(row)
    of_last = np.empty(running[0], np.int64)
    (ending,) = np.nonzero(last == lengths[sequence] - 1)
    of_last[sequence[ending]] = ending
    (first,) = np.nonzero(edge == 0)

    def index(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a, np.int64))

    return Windows(
        Steps(tuple(counts.tolist()), reverse=True),
        *map(index, (np.concatenate(rows), own, of_last, first, sequence[first])),
    )
