"""A linear readout and its cross-entropy: what a call of an engine is given and gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2**22  # logits at a time: few enough for the cache, enough for efficient products


class Readout(NamedTuple):
    """The inputs of the loss, row by row, all of one dtype, which is not half precision."""

    hidden: Float[Tensor, "rows hidden"]
    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None
    targets: Int[Tensor, " rows"]
    """The labels, int64, each from 0 to V - 1."""
    factors: Float[Tensor, " rows"] | None = None
    """Factors on the rows' losses, in the gradients only; None: all are 1."""
    needed: tuple[bool, ...] = (False, False, False)
    """Whether the gradients of hidden, weight and bias are."""
    bf16: bool = False
    """Whether products may be of bfloat16, as :attr:`engines.call.Call.bf16`."""

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return its tensors."""
        return self[:5]

    def chunks(self) -> Iterator[slice]:
        """Yield the rows that are computed at a time."""
        rows, step = len(self.hidden), self.rows_at_a_time()
        return (slice(first, min(first + step, rows)) for first in range(0, rows, step))

    def rows_at_a_time(self) -> int:
        """Return how many rows of logits there is room for."""
        return max(1, CHUNK // max(1, len(self.weight)))


class Found(NamedTuple):
    """The loss of each row, and the gradients of their weighted sum, None if not needed."""

    losses: Float[Tensor, " rows"]
    hidden: Float[Tensor, "rows hidden"] | None
    weight: Float[Tensor, "vocabulary hidden"] | None
    bias: Float[Tensor, " vocabulary"] | None
