"""The exact gradient of a whole stream, chunk by chunk: sensitivities carried forwards in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt._src.credit.credit import Credit, note_spelling
from bptt._src.credit.plan import Plan
from bptt.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Online(Credit):
    """Credits losses to every step before them, also of earlier calls, in constant memory. Exact.

    A layer whose units see each other at no step, that is a :class:`bptt.Recurrent` of a cell with
    ``gates_h=0``, hands on with its state how that depends on the weights (:class:`OnlineState`).
    Given back with the next chunk of the stream, it lets the losses there credit all the steps
    before. A chunk may be of any length, one step too; the gradients of all chunks add up to that
    of backpropagation through the whole stream, as long as the weights do not change in between.
    If they do, the earlier steps count as they were under the earlier weights.

    That is real-time recurrent learning, R. J. Williams and D. Zipser, Neural Computation 1 (1989),
    cheap where the recurrence is diagonal: N. Zucchet, R. Meier, S. Schug, A. Mujika and
    J. Sacramento, arXiv:2305.15947 (2023). For S tensors in the state, G blocks of gates and B
    sequences it takes memory for S·B·G·H·(I + 1) numbers.

    Only the weights of that layer are credited beyond a chunk. What lies below it, such as an
    embedding, gets a gradient from within the chunk, through the input.

    >>> import torch, bptt
    >>> network = bptt.Recurrent(bptt.cells.MIN_GRU, 3, 8)
    >>> state = None
    >>> for chunk in torch.randn(1000, 1, 3).split(10):
    ...     y, state = network(chunk, state, credit=bptt.Online())
    ...     y.square().sum().backward()
    """

    is_online = True

    def __post_init__(self) -> None:
        note_spelling(self)

    def plan(self, steps: int, batch: int = 1, generator: torch.Generator | None = None) -> Plan:
        """Refuse: no weights on the steps of one call say what earlier calls are credited with.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "credit 'online' has no plan: it is for calls of a bptt.Recurrent whose cell has "
            "gates_h=0, network(x, state, credit='online'); elsewhere use 'full' or 'truncated:35'"
        )


class OnlineState(NamedTuple):
    """A state, and how it depends on the weights by way of all steps so far.

    ``state`` is what a call without ``credit="online"`` returns: a tensor, or a tuple of tensors,
    through which a loss may flow back into the last chunk. The next call detaches it, because the
    sensitivities lead further. To forget the past, go on from ``state`` alone, detached.
    """

    state: Any
    """The final state, shaped as without the credit."""
    of_input: Tensor
    """∂(state)/∂weight_ih, [S, B, G·H, I], and beside it, in a last column, that to bias_ih if
    there is one: entry [s, b, g·H + h, i] is of unit h of tensor s of the state."""
    of_units: Tensor
    """∂(state)/∂weight_units, [S, B, U·H]."""

    def detach(self) -> OnlineState:
        """Free the graph of the last chunk; the sensitivities stay."""
        given = self.state
        state = given.detach() if isinstance(given, Tensor) else tuple(s.detach() for s in given)
        return self._replace(state=state)


def is_online(credit: Any) -> bool:
    """Whether a credit, or its spelling, needs an :class:`OnlineState`."""
    if isinstance(credit, str):
        return credit.strip().lower() == "online"
    return bool(getattr(credit, "is_online", False))
