"""Training along a sequence that never ends, with losses that reach beyond a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.credit.full import Full
from bptt._src.credit.spelling import as_credit
from bptt._src.layout import Layout, join
from bptt._src.pytree import is_float, map_tensors, tensors_of
from bptt._src.ranks import ranks_of, sharing
from bptt._src.unroll.buffers import Buffers, modules_in
from bptt._src.unroll.unroll import unroll
from bptt.errors import ConfigError

Run = Callable[[Any, Any, Tensor | None], tuple[Any, Any]]
"""``(inputs [T, B, ...], state, resets [T, B]) -> (outputs [T, B, ...], state)``."""

_POSITION = ("state", "past", "before", "resets")


class Stream:
    """The position of training on a stream, between two updates.

    The state is carried from window to window. If a credit reaches beyond the window, such as
    ``Truncated(every=k1, reach=k2)`` with windows of k1 steps, the gradient goes through the
    k2 - k1 steps before it, and must be computed with the current parameters; the graph of
    the last update belongs to older ones. So those steps are run again, from the state that was
    stored before them. What the module's buffers count, such as BatchNorm's, is counted once.

    Windows may change in length, and so may the credit's reach: as much of the past is run
    again as is kept. If the batch changes, or another sequence begins, start with a new
    ``Stream()``, or mark by ``resets`` the sequences that begin anew.

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

    A forecast, or another window, starts from the current state:

    >>> y, _ = rnn(torch.randn(7, 2, 3), stream.state)

    Where several processes share a batch, each has the sequences ``rank``, ``rank + world_size``
    and so on, as :func:`bptt.data.streams` deals them out, and a stream of its own. A credit that
    draws for each sequence draws for the whole batch, so that each sequence is cut where it would
    be in one process, if all processes seed alike the generator that it draws from. If the batch
    cannot be divided by the number of processes, say how large it is: ``Stream(batch=20)``. By
    default the processes are those of torch.distributed, once it is initialised; say
    ``rank`` and ``world_size`` where only some of these processes share the batch, and the others,
    for instance, the model.
    """

    state: Any = None
    """The current state, after the last step, without a graph; None at the start of a stream."""
    past: Any = None
    """The inputs to run again, [P, B, ...], in the module's layout; None if there are
    none."""
    before: Any = None
    """The state before the ``past``, without a graph; None if there is none."""
    resets: Tensor | None = None
    """Where the sequences of the ``past`` begin anew, [P] or [P, B]; None: nowhere."""
    rank: int | None = None
    """The number of this process; None: that of torch.distributed, 0 if it is not initialised.
    This and the next two are no part of the position that is saved."""
    world_size: int | None = None
    """The number of processes that share the batch; None: that of torch.distributed, or 1."""
    batch: int | None = None
    """The number of sequences of all processes together; None: each has as many as this one."""

    def __init__(
        self,
        state: Any = None,
        past: Any = None,
        before: Any = None,
        resets: Tensor | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Begin a stream, or go on from a position; the arguments are the attributes.

        Raises:
            ConfigError: ``rank`` and ``world_size`` do not fit each other.
        """
        # No dataclass: Fabric refuses frozen ones, and FSDP's first version changes their copies.
        ranks_of(rank, world_size)
        self.__dict__.update(zip(_POSITION, (state, past, before, resets), strict=True))
        self.__dict__.update(rank=rank, world_size=world_size, batch=batch)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: :meth:`advance` returns another stream."""
        raise AttributeError(f"a Stream does not change: cannot assign to {name!r}")

    def __repr__(self) -> str:
        """Write the call that makes it."""
        return f"Stream({', '.join(f'{k}={v!r}' for k, v in vars(self).items() if v is not None)})"

    def advance(
        self,
        module: Any,
        inputs: Any,
        *,
        credit: Any = None,
        resets: Tensor | None = None,
        **options: Any,
    ) -> tuple[Any, Stream]:
        """Advance by one window.

        Args:
            module: a module as for :func:`bptt.unroll`.
            inputs: the window, a tensor [T, B, ...], or a pytree of such; [B, T, ...] if the
                module is ``batch_first``.
            credit: how far back the losses are credited. If its ``history`` is above 0, the
                window must be one block of its losses, ``credit.window`` steps, or fewer at the
                end of a stream.
            resets: where sequences begin anew, as for :func:`bptt.unroll`, for the steps of the
                window; those of the past are remembered.
            options: further options of :func:`bptt.unroll`: ``memory``, ``batch_first``...

        Returns:
            The outputs of the window, and the stream after it.

        Raises:
            ConfigError: the window is longer than the credit's block.
            ValueError: the window's batch differs from that of the past, or is not this process's
                share of ``batch``.
        """
        credit = as_credit(Full() if credit is None else credit)
        where = {k: options.get(k) for k in ("batch_first", "state_batch_dim")}
        layout = Layout.of(module, inputs, **where, where="Stream.advance")
        at = layout.by_time("resets", resets, "Stream.advance")
        length = self.reach_back(credit, layout.steps)
        plan = Full() if length else credit

        def run(x: Any, state: Any, at: Tensor | None) -> tuple[Any, Any]:
            how = options | {"credit": plan, "resets": layout.as_given(at)}
            y, state = unroll(module, x, state, **how)
            return y, state

        buffers = Buffers(modules_in(module)) if length else None
        return self.through(run, inputs, length, layout.time, resets=at, buffers=buffers)

    @staticmethod
    def reach_back(credit: Any, steps: int) -> int:
        """Return the number of steps before a window that a credit's losses reach.

        Args:
            credit: the credit.
            steps: the number of steps of the window.

        Raises:
            ConfigError: the credit reaches back, and the window is longer than its block of losses.
        """
        length, window = getattr(credit, "history", 0), getattr(credit, "window", None)
        if length and window is not None and steps > window:
            raise ConfigError(
                f"{credit!r} reaches back beyond a block of {window} steps, so a stream must be "
                f"trained in windows of {window}, got one of {steps}: split it, or pass the whole "
                "sequence to bptt.unroll"
            )
        return int(length)

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save: ``state``, ``past``, ``before`` and ``resets``.

        Tensors are not copied; nothing changes them in place. ``torch.save``, ``torch.load`` and
        torch.distributed.checkpoint take it. The latter fills tensors that are there: load into
        the ``state_dict`` of a stream that has advanced before.
        """
        return {name: getattr(self, name) for name in _POSITION}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the position that :meth:`state_dict` returned, in place.

        Nothing else changes a stream: :meth:`advance` and :meth:`to` return another one.

        Raises:
            ConfigError: an entry is missing, or there is another one.
        """
        if set(state_dict) != set(_POSITION):
            raise ConfigError(
                f"Stream.load_state_dict: expected the entries {', '.join(sorted(_POSITION))}, as "
                f"Stream.state_dict gives them, got {', '.join(map(repr, state_dict)) or 'none'}"
            )
        for name in _POSITION:
            self.__dict__[name] = state_dict[name]

    def to(self, *args: Any, **options: Any) -> Stream:
        """Return the stream on another device, or in another dtype.

        Args:
            args: a device, a dtype, or both, as for :meth:`torch.nn.Module.to`; a dtype is for
                what is in floating point, and leaves tokens and ``resets`` as they are.
            options: ``device``, ``dtype`` or ``non_blocking``.

        >>> import torch, bptt
        >>> y, stream = bptt.Stream().advance(bptt.GRU(3, 8), torch.randn(5, 2, 3))
        >>> stream.to(torch.float64).state.dtype
        torch.float64
        """
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **options)
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"Stream.to: expected a dtype in floating point, got {dtype}")

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if is_float(x) else None, non_blocking)

        return self._at(*(map_tensors(moved, getattr(self, name)) for name in _POSITION))

    def through(
        self,
        run: Run,
        inputs: Any,
        length: int,
        time: int = 0,
        *,
        resets: Tensor | None = None,
        buffers: Buffers | None = None,
    ) -> tuple[Any, Stream]:
        """Advance like :meth:`advance`, with any function that runs the network.

        Args:
            run: a function that runs the network.
            inputs: the window.
            length: the number of steps that the next update will run again.
            time: the time dimension of inputs and outputs.
            resets: the window's resets, [T] or [T, B], time first.
            buffers: the network's buffers, which a repeated run must not change.
        """
        self._check_share(inputs, time)
        if not length:  # a past left by a longer credit is no longer needed
            with self._sharing():
                y, state = run(inputs, self._now(run, time), resets)
            return y, self._at(_detached(state))
        both, at = self._with_past(inputs, resets, time)
        new, steps = _length(inputs, time), _length(both, time)
        old, kept = steps - new, max(0, steps - length)
        cuts = {0, kept, steps}
        if buffers is not None and buffers.places:
            cuts.add(old)
        state = self.state if self.past is None else self.before
        outputs, before = [], state
        for first, end in pairwise(sorted(cuts)):
            before = state if first == kept else before
            counted = buffers is None or end > old
            aside = nullcontext() if counted else buffers.aside()  # type: ignore[union-attr]
            with self._sharing(), aside:
                x, here = _piece(both, first, end, time), None if at is None else at[first:end]
                y, state = run(x, state, here)
            outputs.append(y)
        past = None if at is None else at[kept:]
        after = self._at(_detached(state), _piece(both, kept, steps, time), _detached(before), past)
        return _piece(join(outputs, time), old, steps, time), after

    def _at(
        self, state: Any, past: Any = None, before: Any = None, resets: Tensor | None = None
    ) -> Stream:
        """Return this stream, of the same process, at another position."""
        where = {"rank": self.rank, "world_size": self.world_size, "batch": self.batch}
        return Stream(state, past, before, resets, **where)

    def _sharing(self) -> AbstractContextManager[None]:
        """Plan for the whole batch; if nothing is said here, for that of torch.distributed."""
        if self.world_size is None and self.batch is None:
            return nullcontext()
        return sharing(ranks_of(self.rank, self.world_size), self.batch)

    def _check_share(self, inputs: Any, time: int) -> None:
        if self.batch is None:
            return
        rank, size = ranks = ranks_of(self.rank, self.world_size)
        found = _batch(inputs, time)
        if found != ranks.share(self.batch):
            raise ValueError(
                f"Stream.advance: of batch={self.batch} sequences, rank {rank} of {size} has "
                f"{ranks.share(self.batch)}, got {found}; batch counts those of all ranks, which "
                "bptt.data.streams deals out like this"
            )

    def _now(self, run: Run, time: int) -> Any:
        """Return the state before the next window; recompute it if a resumed stream lacks it."""
        if self.state is not None or self.past is None:
            return self.state
        with torch.no_grad():
            return run(self.past, self.before, self.resets)[1]

    def _with_past(
        self, inputs: Any, resets: Tensor | None, time: int
    ) -> tuple[Any, Tensor | None]:
        """Put the past in front of a window, and its resets in front of the window's."""
        if self.past is None:
            return inputs, resets
        old, new = tensors_of(self.past), tensors_of(inputs)
        shapes = [[tuple(x.movedim(time, 0).shape[1:]) for x in xs] for xs in (old, new)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "Stream.advance: expected a window whose inputs have the shapes of the past, "
                f"except for time, {shapes[0]}, got {shapes[1]}; begin with a new "
                "Stream() when the batch changes"
            )
        both = join([self.past, inputs], time)
        if self.resets is None and resets is None:
            return both, None
        lengths = (_length(self.past, time), _length(inputs, time))
        given = [
            torch.zeros(n, dtype=torch.bool) if r is None else r
            for r, n in zip((self.resets, resets), lengths, strict=True)
        ]
        device = next(r.device for r in (resets, self.resets) if r is not None)
        batch = max((r.shape[1] for r in given if r.dim() == 2), default=None)
        if batch is not None:
            given = [r if r.dim() == 2 else r.unsqueeze(1).expand(-1, batch) for r in given]
        return both, torch.cat([r.to(device) for r in given])


def _batch(inputs: Any, time: int) -> int:
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    x = tensors_of(inputs)[0]
    return int(x.shape[1 - time]) if x.dim() > 1 else 1


def _length(tree: Any, time: int) -> int:
    return int(tensors_of(tree)[0].shape[time])


def _piece(tree: Any, first: int, end: int, time: int) -> Any:
    if (first, end) == (0, _length(tree, time)):
        return tree
    return map_tensors(lambda x: x.narrow(time, first, end - first), tree)


def _detached(state: Any) -> Any:
    return map_tensors(torch.Tensor.detach, state)
