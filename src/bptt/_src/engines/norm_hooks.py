"""What the backward passes report of the state's gradient, to whoever listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from bptt._src.engines import guard
from bptt._src.steps import Steps


class Report(NamedTuple):
    """The norms of the state's gradient in one backward pass over a sequence of one layer."""

    weight: Tensor
    """The layer's recurrent weights: says which layer it is."""
    steps: Steps
    """Which rows belong to which step, in the order gone through."""
    norms: Float64[Tensor, "rows states"]
    """‖∂L/∂h_t‖, and for an LSTM ‖∂L/∂c_t‖ beside it, of each row, as the step after hands it down:
    what the loss of step t itself adds is not in it."""

    def by_step(self) -> list[float]:
        """‖∂L/∂h_t‖ of each step over the batch, from the first step to the last."""
        norms, sizes = self.norms[:, 0], self.steps.sizes
        if len(norms) > len(sizes):  # more than one sequence
            squares = np.square(norms.numpy())
            if self.steps.is_dense:
                summed = squares.reshape(len(sizes), -1).sum(1)
            else:
                summed = np.add.reduceat(squares, np.cumsum([0, *sizes[:-1]]))
            norms = torch.from_numpy(np.sqrt(summed))
        found: list[float] = norms.tolist()
        return found[::-1] if self.steps.reverse else found


def by_layer(heard: list[Report]) -> list[list[float]]:
    """‖∂L/∂h_t‖ of each step, from the first on, layer by layer, the lowest first.

    Args:
        heard: the reports of a backward pass through all layers; of a layer there may be several,
            those of its pieces, the last one first.
    """
    found: dict[tuple[int, int], list[float]] = {}
    for report in reversed(heard):
        found.setdefault(guard.place(report.weight), []).extend(report.by_step())
    return list(found.values())


_listeners: list[list[Report]] = []


@contextmanager
def listen() -> Iterator[list[Report]]:
    """Collect the reports of all backward passes within a ``with`` block, in their order.

    Those of :class:`bptt.RNN`, :class:`bptt.GRU` and :class:`bptt.LSTM` report, on the processor,
    where they run as a whole: not under forward mode or a transform.

    >>> import bptt
    >>> x = torch.randn(5, 2, 3)
    >>> y, _ = bptt.GRU(3, 4)(x)
    >>> with listen() as heard:
    ...     y[-1].sum().backward()
    >>> [report.norms.shape for report in heard]
    [torch.Size([10, 1])]
    """
    heard: list[Report] = []
    _listeners.append(heard)
    try:
        yield heard
    finally:
        _listeners[:] = [others for others in _listeners if others is not heard]


def room(steps: Steps, states: int, device: torch.device) -> Float64[Tensor, "rows states"] | None:
    """Make room for the norms of a backward pass; None where nobody listens."""
    if not _listeners or device.type != "cpu":
        return None
    return torch.zeros(sum(steps.sizes), states, dtype=torch.float64, device=device)


def tell(weight: Tensor, steps: Steps, norms: Float64[Tensor, "rows states"] | None) -> None:
    """Report the norms, if there is room for them."""
    if norms is not None:
        for heard in _listeners:
            heard.append(Report(weight, steps, norms))
