"""The bias that a truncation has on the very sequences whose gradient was followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.credit.error import estimator_error
from bptt._src.credit.truncated import Truncated
from bptt._src.flow.untouched import same_random_numbers, untouched
from bptt.errors import ConfigError

SAME = 0.01
"""Losses that differ by more than this share of the largest are not those of the same network."""


@dataclass(frozen=True, eq=False)
class TruncationBias:
    """Measures the relative bias of truncated credit on what :func:`bptt.gradient_flow` followed.

    It refers to the module and the inputs, and copies neither.
    """

    module: Any
    inputs: Any
    loss_fn: Callable[[Any], Tensor]
    """``outputs -> losses``, [T] or [T, B]."""
    state: Any
    times: tuple[int, ...]
    """The steps whose losses were followed."""
    losses: Float[Tensor, "losses batch"]
    """Their losses then, [N, B]."""
    options: dict[str, Any]
    """``resets``, ``batch_first`` and ``state_batch_dim``, as for :func:`bptt.unroll`."""

    def __call__(self, every: int, reach: int, first: int = 0) -> float:
        """Return ‖ĝ - g‖ / ‖g‖ over all of the module's parameters.

        No ``grad``, buffer or random generator is changed.

        Args:
            every: as of :class:`bptt.Truncated`.
            reach: likewise.
            first: the first step whose loss counts.

        Raises:
            ConfigError: there is nothing to measure: the module has no parameters, their gradient
                is zero, or the module's losses are no longer those that were followed.
        """
        times = [t for t in self.times if t >= first]

        def loss(outputs: Any) -> Tensor:
            losses = self.loss_fn(outputs)
            self._refuse_others(losses)
            return losses[times].sum()

        with untouched(self.module), same_random_numbers(self.inputs, self.state):
            error = estimator_error(
                self.module,
                self.inputs,
                loss,
                Truncated(every=every, reach=reach),
                state=self.state,
                generator=torch.Generator().manual_seed(0),
                **self.options,
            )
        return error.total.bias

    def _refuse_others(self, losses: Tensor) -> None:
        now = losses.detach().double()[[*self.times]]
        now = now.unsqueeze(1) if now.dim() == 1 else now
        off = (now - self.losses).abs().max()
        if not float(off) <= SAME * float(self.losses.abs().max()):
            raise ConfigError(
                "the module's losses are no longer those that were followed: it was trained "
                "further, or drops units at random"
            )
