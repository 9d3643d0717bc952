"""The loop over time, for any recurrent module: it carries out a plan and knows no policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.credit.full import Full
from bptt.credit.plan import Plan
from bptt.credit.spelling import as_credit
from bptt.kernels.loop import ScaleGradient
from bptt.memory import Memory
from bptt.memory import parse as parse_memory
from bptt.pytree import is_float, leaves_of, map_tensors

Recurrent = Callable[..., tuple[Any, Any]]
"""``(inputs [T, B, ...], state) -> (outputs [T, B, ...], state)``."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a loop over time: nothing to gain
def unroll(
    module: Recurrent,
    inputs: Any,
    state: Any = None,
    *,
    credit: Any = None,
    memory: Memory | str | None = None,
    resets: Tensor | None = None,
    generator: torch.Generator | None = None,
    per_sequence: bool | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> tuple[Any, Any]:
    """Run a recurrent module over a sequence, its losses credited as far back as wanted.

    The outputs are the module's own; what changes is the gradient that ``loss.backward()`` finds
    for the module's parameters, the inputs and the initial state: the sum of W[t, s] · C[t, s]
    (:class:`bptt.Plan`). A loss of the final state counts as one of the last step.

    Args:
        module: any callable ``(inputs, state) -> (outputs, state)`` that goes over steps: a
            module of bptt or torch.nn, or one of yours; one that takes single steps through
            :class:`bptt.Stepwise`. What it gives for some steps, and then for those after them
            from the state that it returned, has to be what it gives for all of them at once. It
            is called with consecutive pieces of the inputs, which are cut where the plan wants
            something done to the gradient.
        inputs: a tensor [T, B, ...], or any nest of tuples, lists and dictionaries of such.
        state: any nest of tensors, or None where the module knows how to begin.
        credit: how far back losses are credited: :class:`bptt.Full`, the default,
            :class:`bptt.Truncated`, :class:`bptt.Randomized`, :class:`bptt.Adaptive`, a
            :class:`bptt.Plan`, or your own; or its spelling, as ``"truncated:20"``.
        memory: what the backward pass keeps: :class:`bptt.Store` or :class:`bptt.Recompute`,
            which give the same bits (those of ``torch.nn.LSTM`` differ by rounding: torch has
            other kernels for it without a graph); or the spelling, as ``"recompute:64MB"``. What
            torch draws from its own generators is drawn again as it was, so dropout falls on the
            same units; a generator of the module's own, or NumPy's, is not set back. None leaves
            it to autograd: everything, and second derivatives too, which the other two do not
            know.
        resets: [T] or [T, B] bool: the state is set to zero before step t where ``resets[t]``
            is true, and no gradient crosses.
        generator: draws what is random in the credit; torch's own by default.
        per_sequence: whether the credit may treat the sequences of the batch differently, as
            :class:`bptt.Randomized` does. By default only for modules that take ``carry``
            themselves, as bptt's own. Any other one has to be called anew at each step where
            any sequence is cut, so all are cut at the same steps and its pieces stay long.
        state_batch_dim: where the batch lies in each of the state's tensors; by default the
            module's own attribute of that name, or 1 as in torch.nn: [L, B, H].
        batch_first: whether inputs and outputs are [B, T, ...]; by default what the module's
            attribute of that name says, or False.

    Returns:
        ``(outputs, state)``, as the module gives them.

    Raises:
        ValueError: sizes do not fit; or the module is bidirectional and would have to be called
            in pieces, which would change what it computes.
        RuntimeError: a backward pass is run twice with ``memory``, or a tensor changed in
            between.

    A network of torch.nn, truncated:

    >>> import torch, bptt
    >>> lstm = torch.nn.LSTM(4, 8)
    >>> x = torch.randn(100, 3, 4)
    >>> y, (h, c) = bptt.unroll(lstm, x, credit=bptt.Truncated(20))
    >>> y.square().mean().backward()
    """
    memory = parse_memory(memory) if isinstance(memory, str) else memory
    refuse_cell(module, "bptt.unroll")
    steps = _Steps.of(module, inputs, batch_first)
    takes_carry = bool(getattr(module, "takes_carry", False))
    if takes_carry and memory is None and per_sequence is not False:
        return module(inputs, state, credit=credit, resets=resets, generator=generator)
    if per_sequence is None:
        per_sequence = takes_carry
    batch = (steps.B or 1) if per_sequence else 1
    plan = as_credit(Full() if credit is None else credit).plan(steps.T, batch, generator)
    _check(plan, steps, resets)
    crossing = Crossing(plan, resets, _batch_dim(module, state_batch_dim), steps.B)
    if takes_carry and memory is None:
        return module(inputs, state, credit=plan, resets=resets)
    if memory is None and plan.is_product:
        cuts = crossing.places()
        _refuse_bidirectional(module, len(cuts) > 1)
        return _in_pieces(module, steps, state, crossing, cuts)
    if isinstance(inputs, PackedSequence):
        raise ValueError(
            "bptt.unroll: a PackedSequence cannot be cut into pieces, as memory= wants; give "
            "[T, B, ...], padded, or use memory=None"
        )
    from bptt.replay import run

    _refuse_bidirectional(module, True)
    return run(module, steps, state, plan, crossing, memory, takes_carry)


@dataclass(frozen=True)
class _Steps:
    """Inputs, cut along time."""

    inputs: Any
    T: int
    B: int | None
    time: int
    """The dimension of time."""

    @classmethod
    def of(cls, module: Any, inputs: Any, batch_first: bool | None) -> _Steps:
        if isinstance(inputs, PackedSequence):
            if getattr(module, "takes_carry", False):
                sizes = inputs.batch_sizes
                return cls(inputs, len(sizes), int(sizes[0]), 0)
            raise ValueError(
                "bptt.unroll: a PackedSequence cannot be cut into pieces; give [T, B, ...], "
                "padded, or a module of bptt with memory=None"
            )
        own = getattr(module, "batch_first", None)
        if None not in (own, batch_first) and bool(own) is not batch_first:
            raise ValueError(
                f"bptt.unroll: batch_first={batch_first} was given, and the module has "
                f"batch_first={own}; leave it out"
            )
        first = bool(own) if batch_first is None else batch_first
        tensors = [x for x in leaves_of(inputs) if isinstance(x, Tensor)]
        batched = 3 if isinstance(module, nn.RNNBase) else 2  # the dimensions of an input at least
        unbatched = bool(tensors) and tensors[0].dim() < batched
        time = int(first and not unbatched)
        lengths = {x.shape[time] if x.dim() > time else 0 for x in tensors}
        if len(lengths) != 1 or 0 in lengths:
            layout = "[B, T, ...]" if first else "[T, B, ...]"
            raise ValueError(
                f"bptt.unroll: expected inputs {layout}, all of the same number of steps, at "
                f"least one; got {', '.join(str(tuple(x.shape)) for x in tensors) or 'no tensor'}"
            )
        batch = None if unbatched else tensors[0].shape[1 - time]
        return cls(inputs, lengths.pop(), batch, time)

    def piece(self, first: int, end: int) -> Any:
        if (first, end) == (0, self.T):
            return self.inputs
        return map_tensors(lambda x: x.narrow(self.time, first, end - first), self.inputs)


class Crossing:
    """What happens to the state, and to its gradient, at the boundaries between steps."""

    def __init__(self, plan: Plan, resets: Tensor | None, dim: int, batch: int | None) -> None:
        self.carry, self.dim, self.batch = torch.from_numpy(plan.carry), dim, batch
        self.resets = None if resets is None else resets.detach()

    def places(self) -> list[int]:
        """The steps before which something happens, 0 always among them."""
        happens = self.carry != 1
        happens = happens if happens.dim() == 1 else happens.any(1)
        if self.resets is not None:
            resets = self.resets if self.resets.dim() == 1 else self.resets.any(1)
            happens = happens | resets.to(happens.device)
        happens[0] = True
        return [int(t) for t in happens.nonzero()]

    def reset(self, t: int, state: Any) -> Any:
        """Set the state to zero where step t starts anew."""
        if self.resets is None or not bool(self.resets[t].any()):
            return state
        at = self.resets[t]
        if at.dim() == 0:
            return map_tensors(torch.zeros_like, state)

        def zero(s: Tensor) -> Tensor:
            if not is_float(s) and (s.dim() <= self.dim or s.shape[self.dim] != self.batch):
                return s
            return torch.where(self.along(at, s), torch.zeros_like(s), s)

        return map_tensors(zero, state)

    def check(self, t: int, state: Any) -> None:
        """Refuse a state that the factors of a step do not fit, before the backward pass does."""
        for s in leaves_of(state):
            if is_float(s):
                self.factor(t, s)

    def factor(self, t: int, s: Tensor) -> Tensor | None:
        """What the gradient of one of the state's tensors is multiplied by; None: by 1."""
        at = self.carry[t]
        if bool((at == 1).all()):
            return None
        return self.along(at.to(s.real.dtype), s)

    def scale(self, t: int, gradient: Tensor | None) -> Tensor | None:
        """Let a gradient cross from step t to the step before: reweight it, stop it at resets."""
        if gradient is None:
            return None
        factor = self.factor(t, gradient)
        if factor is not None:
            gradient = torch.where(factor == 0, torch.zeros_like(gradient), gradient * factor)
        if self.resets is not None and bool(self.resets[t].any()):
            at = self.along(self.resets[t], gradient)
            gradient = torch.where(at, torch.zeros_like(gradient), gradient)
        return gradient

    def along(self, at: Tensor, s: Tensor) -> Tensor:
        """Lay out a value for each sequence, [B], so that it meets its part of ``s``."""
        at = at.to(s.device)
        if at.numel() == 1:
            return at.reshape(())
        if s.dim() <= self.dim or s.shape[self.dim] != len(at):
            raise ValueError(
                f"bptt.unroll: one of the state's tensors is {tuple(s.shape)}, where dimension "
                f"{self.dim} should be the batch of {len(at)}; say where it is with "
                "state_batch_dim, or treat all sequences alike: resets [T], per_sequence=False"
            )
        return at.view(-1, *(1,) * (s.dim() - self.dim - 1))


def _in_pieces(
    module: Recurrent, steps: _Steps, state: Any, crossing: Crossing, cuts: list[int]
) -> tuple[Any, Any]:
    """Call the module piece by piece, under autograd."""

    def scaled(t: int, s: Tensor) -> Tensor:
        factor = crossing.factor(t, s) if is_float(s) else None
        return s if factor is None else ScaleGradient.apply(s, factor)

    outputs = []
    for first, end in pairwise([*cuts, steps.T]):
        state = map_tensors(partial(scaled, first), crossing.reset(first, state))
        y, state = module(steps.piece(first, end), state)
        if len(cuts) > 1:
            check_output(y, end - first, steps.time)
        outputs.append(y)
    return join(outputs, steps.time), state


def join(outputs: list[Any], time: int) -> Any:
    """Put pieces of outputs, which may be nests, together along time."""
    if len(outputs) == 1:
        return outputs[0]
    pieces = [[v for v in leaves_of(y) if isinstance(v, Tensor)] for y in outputs]
    joined = iter([torch.cat(p, dim=time) for p in zip(*pieces, strict=True)])
    return map_tensors(lambda _: next(joined), outputs[0])


def check_output(y: Any, length: int, time: int) -> None:
    """Refuse outputs of a piece that are not one for each of its steps."""
    for v in leaves_of(y):
        if isinstance(v, Tensor) and (v.dim() <= time or v.shape[time] != length):
            raise ValueError(
                f"bptt.unroll: the module's output for {length} steps is {tuple(v.shape)}; "
                f"dimension {time} has to be time"
            )


def _batch_dim(module: Any, given: int | None) -> int:
    return int(getattr(module, "state_batch_dim", 1)) if given is None else given


def _check(plan: Plan, steps: _Steps, resets: Tensor | None) -> None:
    T, B = steps.T, steps.B
    if plan.steps != T or plan.batch not in (None, 1, B):
        raise ValueError(
            f"bptt.unroll: the credit has planned for {plan.steps} steps and batch {plan.batch}, "
            f"the inputs have {T} steps and batch {B}"
        )
    if resets is not None and (
        resets.dtype != torch.bool or tuple(resets.shape) not in ((T,), (T, B))
    ):
        raise ValueError(
            f"bptt.unroll: expected resets bool of shape {(T,)} or {(T, B)}, [T] or [T, B], got "
            f"{resets.dtype} of {tuple(resets.shape)}"
        )


def _refuse_bidirectional(module: Any, in_pieces: bool) -> None:
    if in_pieces and getattr(module, "bidirectional", False):
        raise ValueError(
            "bptt.unroll: the module is bidirectional, so it cannot be run in pieces: what it "
            "gives depends on the steps after them; use bptt.RNN, GRU or LSTM with "
            "memory=None and a credit without windows that overlap, or credit=bptt.Full()"
        )


def refuse_cell(module: Any, function: str) -> None:
    """Refuse what takes single steps, and say what makes it go over all of them."""
    if isinstance(module, nn.RNNCellBase):
        kind = type(module).__name__
        raise TypeError(
            f"{function}: expected a module that goes over steps, got a {kind}, which takes one; "
            f"wrap it: bptt.Stepwise(cell)"
        )


class Stepwise(nn.Module):
    """A cell that takes single steps, as a module that goes over sequences.

    Args:
        cell: a callable ``(x_t [B, ...], state) -> (output, state)``, or one of torch.nn's
            cells, ``(x_t, state) -> state``, whose output is h.
        state_batch_dim: where the batch lies in each of the state's tensors.

    >>> import torch, bptt
    >>> network = bptt.Stepwise(torch.nn.LSTMCell(4, 8))
    >>> y, (h, c) = bptt.unroll(network, torch.randn(30, 3, 4), credit=bptt.Truncated(10))
    >>> y.shape, c.shape
    (torch.Size([30, 3, 8]), torch.Size([3, 8]))
    """

    batch_first = False

    def __init__(self, cell: Callable[..., Any], state_batch_dim: int = 0) -> None:
        super().__init__()
        self.cell, self.state_batch_dim = cell, state_batch_dim

    def forward(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Go over the steps.

        Args:
            inputs: [T, B, ...], or a nest of such.
            state: what the cell takes; None where it knows how to begin.

        Returns:
            The outputs of all steps, [T, B, ...] or a nest of such, and the final state.
        """
        T = next(len(x) for x in leaves_of(inputs) if isinstance(x, Tensor))
        outputs = []
        for t in range(T):
            found = self.cell(map_tensors(itemgetter(t), inputs), state)
            if isinstance(self.cell, nn.RNNCellBase):
                state = found
                found = (state[0] if isinstance(state, tuple) else state), state
            output, state = found
            outputs.append(output)
        pieces = [[v for v in leaves_of(y) if isinstance(v, Tensor)] for y in outputs]
        stacked = iter([torch.stack(p) for p in zip(*pieces, strict=True)])
        return map_tensors(lambda _: next(stacked), outputs[0]), state
