"""Training along a sequence that never ends, with losses that reach beyond a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.credit.full import Full
from bptt.credit.spelling import as_credit
from bptt.errors import ConfigError
from bptt.pytree import leaves_of, map_tensors
from bptt.unrolling import unroll

Run = Callable[[Any, Any], tuple[Any, Any]]
"""``(inputs [T, B, ...], state) -> (outputs [T, B, ...], state)``."""


@dataclass(frozen=True)
class Stream:
    """Where training stands on a stream, between two updates.

    The state is carried from window to window. With a credit that reaches beyond the window, as
    ``Truncated(every=k1, reach=k2)`` with windows of k1 steps, the gradient goes through the
    k2 - k1 steps before it, and has to be that of the parameters as they are now; the graph of
    the last update belongs to others. So those steps are run again, from the state that was
    stored in front of them.

    >>> import torch, bptt
    >>> rnn, data = bptt.GRU(3, 8), torch.randn(60, 2, 3)
    >>> optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    >>> stream, credit = bptt.Stream(), bptt.Truncated(every=5, reach=15)
    >>> for window in data.split(5):
    ...     y, stream = stream.advance(rnn, window, credit=credit)
    ...     optimizer.zero_grad()
    ...     y.square().mean().backward()
    ...     optimizer.step()
    >>> stream.past.shape
    torch.Size([10, 2, 3])
    """

    state: Any = None
    """The state before the ``past``, without a graph; None at the beginning of a stream."""
    past: Any = None
    """The inputs that will be run again, [P, B, ...]; None where there are none."""

    def advance(
        self, module: Any, inputs: Any, *, credit: Any = None, **options: Any
    ) -> tuple[Any, Stream]:
        """Go on through a window.

        Args:
            module: what :func:`bptt.unroll` takes.
            inputs: the window, a tensor [T, B, ...], or a nest of such.
            credit: how far back the losses are credited. Where its ``history`` is above 0 the
                window has to be one block of its losses, ``credit.window`` steps, or less at a
                stream's end.
            options: further ones of :func:`bptt.unroll`; no ``resets``.

        Returns:
            The outputs of the window, and where the stream stands after it.

        Raises:
            ConfigError: the window is longer than the credit's block.
        """
        credit = as_credit(Full() if credit is None else credit)
        length, window = getattr(credit, "history", 0), getattr(credit, "window", None)
        time = int(bool(getattr(module, "batch_first", False)))
        steps = next(x.shape[time] for x in leaves_of(inputs) if isinstance(x, Tensor))
        if length and window is not None and steps > window:
            raise ConfigError(
                f"{credit!r} reaches back beyond a block of {window} steps, so a stream is "
                f"trained in windows of {window}, got one of {steps}: split it, or give the whole "
                "sequence to bptt.unroll"
            )
        plan = Full() if length else credit

        def run(x: Any, state: Any) -> tuple[Any, Any]:
            y, state = unroll(module, x, state, credit=plan, **options)
            return y, state

        return self.through(run, inputs, length, time)

    def through(self, run: Run, inputs: Any, length: int, time: int = 0) -> tuple[Any, Stream]:
        """Do what :meth:`advance` does with whatever runs the network.

        Args:
            run: the network.
            inputs: the window.
            length: how many steps the next update will run again.
            time: the dimension of time in inputs and outputs.
        """
        if not length:
            y, state = run(inputs, self.state)
            return y, Stream(_detached(state))
        both = inputs if self.past is None else _join([self.past, inputs], time)
        new, steps = _length(inputs, time), _length(both, time)
        keep = min(length, steps)
        past = _piece(both, steps - keep, steps, time)
        state, outputs = self.state, []
        if keep < steps:
            y, state = run(_piece(both, 0, steps - keep, time), state)
            outputs.append(y)
        after = Stream(_detached(state), past)
        y, _ = run(past, state)
        y = _join([*outputs, y], time)
        return _piece(y, steps - new, steps, time), after


def _length(nest: Any, time: int) -> int:
    return next(int(x.shape[time]) for x in leaves_of(nest) if isinstance(x, Tensor))


def _piece(nest: Any, first: int, end: int, time: int) -> Any:
    return map_tensors(lambda x: x.narrow(time, first, end - first), nest)


def _join(pieces: list[Any], time: int) -> Any:
    """Put nests of tensors together along time."""
    if len(pieces) == 1:
        return pieces[0]
    joined = (torch.cat(leaves, dim=time) for leaves in zip(*map(leaves_of, pieces), strict=True))
    return map_tensors(lambda _: next(joined), pieces[0])


def _detached(state: Any) -> Any:
    return map_tensors(torch.Tensor.detach, state)
