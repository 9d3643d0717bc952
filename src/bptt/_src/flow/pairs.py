"""Which pairs of a loss and an earlier step are followed, and where their values are put."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from bptt._src.flow.flow import StateFlow


@dataclass(frozen=True)
class Pairs:
    """The losses of some steps, each back to as many lags as there are, or as were asked for."""

    steps: int
    """T."""
    batch: int
    """B."""
    times: tuple[int, ...]
    """The N steps whose losses are followed, in order."""
    lags: int
    """How many lags, from 0 on."""

    @classmethod
    def of(cls, steps: int, batch: int, times: Sequence[int] | None, lags: int | None) -> Pairs:
        """Check what was asked for.

        Raises:
            ValueError: there is no such step, or no lag.
        """
        try:
            chosen = sorted({index(t) for t in (range(steps) if times is None else times)})
            lags = None if lags is None else index(lags)
        except TypeError:
            raise ValueError(
                "gradient_flow: expected times as a list of whole numbers, and lags as one, got "
                f"times={times!r}, lags={lags!r}"
            ) from None
        if not chosen or chosen[0] < -steps or chosen[-1] >= steps:
            raise ValueError(
                f"gradient_flow: expected times from 0 to {steps - 1}, or from the end, -{steps} "
                f"to -1; one at least, got {times!r}"
            )
        chosen = sorted({t % steps for t in chosen})
        if lags is not None and lags < 1:
            raise ValueError(f"gradient_flow: expected lags from 1 on, got {lags}")
        most = min(chosen[-1] + 1, steps)
        return cls(steps, batch, tuple(chosen), most if lags is None else min(lags, most))

    @property
    def losses_at_a_step(self) -> float:
        """How many losses are on their way through a step, on average."""
        return sum(min(t + 1, self.lags) for t in self.times) / self.steps

    def empty(self, device: torch.device) -> Float[Tensor, "batch losses time"]:
        """Make room for values, [B, N, T] float64: NaN. In memory those of a step are together."""
        shape = self.steps, self.batch, len(self.times)
        values = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        return values.permute(1, 2, 0)

    def completed(
        self, values: Float[Tensor, "batch losses time"]
    ) -> Float[Tensor, "batch losses time"]:
        """Put zeros where a step comes after the loss, and NaN where it is too many lags before."""
        lag = torch.tensor(self.times).unsqueeze(1) - torch.arange(self.steps)
        lag = lag.to(values.device)
        values.masked_fill_(lag < 0, 0).masked_fill_(lag >= self.lags, torch.nan)
        return values.contiguous()


def by_step(values: Float[Tensor, "batch losses time"]) -> Float[Tensor, "time batch losses"]:
    """Turn the room that :meth:`Pairs.empty` made to how it lies in memory."""
    return values.permute(2, 0, 1)


class Found(NamedTuple):
    """What following the losses gave."""

    losses: Float[Tensor, "time batch"]
    """Of all steps, [T, B] float64."""
    states: tuple[StateFlow, ...]
    attribution: Float[Tensor, "batch losses time"] | None
