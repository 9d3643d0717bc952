"""Which rows belong to which step.

A sequence, padded or packed, is a matrix of N rows, one for each step of each sequence, step
after step: torch's packed layout, of which [T, B] flattened is the case where every step has B
rows. The kernels work on rows, so that packed sequences need no repacking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


class Boundary(NamedTuple):
    """What happens to the state and its gradient between a step and the one before it."""

    carry: Float[Tensor, "rows 1"] | None = None
    """Factors of the gradient, [N, 1]."""
    resets: Bool[Tensor, "rows 1"] | None = None
    """Where the state is set to zero before the step, [N, 1]."""

    @property
    def cuts(self) -> Bool[Tensor, "rows 1"] | None:
        """Where no gradient passes, not even an infinite one, [N, 1]."""
        if self.carry is None:
            return self.resets
        return self.carry == 0 if self.resets is None else self.resets | (self.carry == 0)


@dataclass(frozen=True)
class Steps:
    """The order in which the rows of a sequence are worked on, in one direction."""

    sizes: tuple[int, ...]
    """How many sequences are still running at each step, [T]; never increasing."""
    reverse: bool = False
    """Whether the last step comes first."""

    @property
    def batch(self) -> int:
        """The number of sequences, B."""
        return self.sizes[0] if self.sizes else 0

    @property
    def is_dense(self) -> bool:
        """Whether every sequence runs to the end."""
        return not self.sizes or self.sizes[-1] == self.sizes[0]

    def forth(self, *rows: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        """Walk through the steps in order, giving each tensor's rows of the step.

        Args:
            rows: tensors of N rows; in place of None, None is given at each step.

        >>> x = torch.arange(5)
        >>> [rows.tolist() for rows, _ in Steps((3, 2)).forth(x, None)]
        [[0, 1, 2], [3, 4]]
        """
        return self._walk(rows, self.reverse)

    def back(self, *rows: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        """Walk through the steps against the order, as the backward pass does."""
        return self._walk(rows, not self.reverse)

    def _walk(
        self, tensors: tuple[Tensor | None, ...], last_first: bool
    ) -> Iterator[tuple[Tensor, ...]]:
        views: list[Iterable[Tensor | None]] = []
        for rows in tensors:
            if rows is None:
                views.append(repeat(None, len(self.sizes)))
            else:
                parts = rows.split(self.sizes)
                views.append(reversed(parts) if last_first else parts)
        return zip(*views, strict=True)  # a None stays None

    def previous(
        self, initial: Shaped[Tensor, "batch hidden"], states: Shaped[Tensor, "rows hidden"]
    ) -> Shaped[Tensor, "rows hidden"]:
        """Return for each row the state from which its step starts: the step before's, or initial.

        Args:
            initial: the state before the first step, [B, H].
            states: the states after each step, [N, H].
        """
        if not self.is_dense:
            return torch.cat([initial, states])[self._previous_index().to(states.device)]
        if self.reverse:
            return torch.cat([states[self.batch :], initial])
        return torch.cat([initial, states[: len(states) - self.batch]])

    def _previous_index(self) -> Int64[Tensor, " rows"]:
        """Each row's place in ``cat([initial, states])``, [N]."""
        sizes = torch.tensor(self.sizes, device="cpu")
        rows = torch.arange(int(sizes.sum()), device="cpu")

        def of_each_row(step: Tensor) -> Tensor:
            return step.repeat_interleave(sizes)

        if not self.reverse:  # the same sequence one step earlier, as many rows as that step had
            return rows + self.batch - of_each_row(torch.cat([sizes[:1], sizes[:-1]]))
        sequence = rows - of_each_row(sizes.cumsum(0) - sizes)
        goes_on = sequence < of_each_row(torch.cat([sizes[1:], sizes.new_zeros(1)]))
        return torch.where(goes_on, self.batch + rows + of_each_row(sizes), sequence)
