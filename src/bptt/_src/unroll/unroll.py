"""The loop over time for any recurrent module: it carries out plans and knows no credit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.autograd import sequence_number
from bptt._src.credit.full import Full
from bptt._src.credit.plan import plan_for
from bptt._src.credit.spelling import as_credit
from bptt._src.layout import Layout, declared, join
from bptt._src.pytree import check_leaves
from bptt._src.uncompiled import uncompiled
from bptt._src.unroll.boundary import Boundaries
from bptt._src.unroll.buffers import Buffers, modules_in
from bptt._src.unroll.calls import (
    RETURNS,
    check_batch,
    check_callable,
    check_output,
    check_visible,
    is_detached,
    pair,
    refuse_bidirectional,
    refuse_cell,
    refuse_detached,
    refuse_hidden_path,
)
from bptt._src.unroll.node import replayed
from bptt._src.unroll.observed import observers
from bptt.memory import Memory
from bptt.memory import parse as parse_memory

Recurrent = Callable[..., tuple[Any, Any]]
"""``(inputs [T, B, ...], state) -> (outputs [T, B, ...], state)``."""


@uncompiled  # a loop over time: nothing to gain
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
    """Run a recurrent module over a sequence, with its losses credited as far back as you choose.

    The outputs are the module's own; what changes is the gradient that ``loss.backward()`` finds
    for the module's parameters, the inputs and the initial state: the sum of W[t, s] · C[t, s]
    (:class:`bptt.Plan`). A loss of the final state counts as one of the last step.

    Args:
        module: any callable ``(inputs, state) -> (outputs, state)`` over many steps: a module of
            bptt or torch.nn, or your own; wrap one that takes single steps in
            :class:`bptt.Stepwise`. Its results for some steps, and then for the following ones
            from the state that it returned, must be its results for all of them at once. It
            is called with consecutive pieces of the inputs, which are cut where the plan changes
            the gradient.
        inputs: a tensor [T, B, ...], or a pytree of such.
        state: a pytree of tensors, or None if the module makes its own initial state: tuples,
            named tuples, lists, dictionaries, dataclasses, and classes registered with
            ``torch.utils._pytree``. Values that are not tensors are passed on unchanged.
        credit: how far back losses are credited: :class:`bptt.Full`, the default,
            :class:`bptt.Truncated`, :class:`bptt.Randomized`, :class:`bptt.Adaptive`, a
            :class:`bptt.Plan`, or your own; or its spelling, such as ``"truncated:20"``.
        memory: what the backward pass keeps: :class:`bptt.Store` or :class:`bptt.Recompute`,
            which give the same bits (those of ``torch.nn.LSTM`` differ by rounding, because
            without a graph torch uses other kernels); or the spelling, such as
            ``"recompute:64MB"``. Recomputations repeat the draws of torch's own generators, so
            dropout drops the same units; a generator of the module's own, or NumPy's, is not
            restored. None leaves everything to autograd, which keeps it all and supports second
            derivatives; the other two do not. A recomputed step sees the module's buffers, such as
            BatchNorm's, as they were the first time, and counts once; other attributes are not
            restored.
        resets: bool, [T], or one for each sequence, [T, B], or [B, T] with ``batch_first``: the
            state is set to zero before the steps where it is true, and no gradient crosses.
        generator: the generator for random credits; torch's own by default.
        per_sequence: whether the credit may treat the sequences of the batch differently, as
            :class:`bptt.Randomized` does. By default only for modules that take ``carry``
            themselves, such as bptt's own. Any other module has to be called anew at each step
            where any sequence is cut, so all are cut at the same steps and its pieces stay long.
        state_batch_dim: the batch dimension of each of the state's tensors; by default the
            module's own attribute of that name, or 1 as in torch.nn: [L, B, H].
        batch_first: whether inputs and outputs are [B, T, ...], and ``resets`` [B, T]; by default
            the module's attribute of that name, or False.

    Returns:
        ``(outputs, state)``, as the module returns them.

    Raises:
        TypeError: the module does not return ``(outputs, state)``, or its state contains an
            object whose tensors cannot be found.
        ValueError: the plan, ``resets`` or ``memory`` has to act on the state, but the module
            returns one without a tensor, or a detached one, or keeps another one in itself;
            sizes do not match; or the module is bidirectional and would have to be called
            in pieces, which would change its results.
        RuntimeError: a backward pass is run twice with ``memory``, or a tensor changed in
            between.

    A network of torch.nn, truncated:

    >>> import torch, bptt
    >>> lstm = torch.nn.LSTM(4, 8)
    >>> x = torch.randn(100, 3, 4)
    >>> y, (h, c) = bptt.unroll(lstm, x, credit=bptt.Truncated(20))
    >>> y.square().mean().backward()
    """
    how = {
        "credit": credit,
        "memory": memory,
        "resets": resets,
        "generator": generator,
        "per_sequence": per_sequence,
        "state_batch_dim": state_batch_dim,
        "batch_first": batch_first,
    }
    run = partial(_unroll, module)
    for observer in observers:
        run = partial(observer, module, run)
    return run(inputs, state, **how)


def _unroll(
    module: Recurrent,
    inputs: Any,
    state: Any,
    *,
    credit: Any,
    memory: Memory | str | None,
    resets: Tensor | None,
    generator: torch.Generator | None,
    per_sequence: bool | None,
    state_batch_dim: int | None,
    batch_first: bool | None,
) -> tuple[Any, Any]:
    """Run :func:`unroll`, once those who observe it have been told."""
    memory = parse_memory(memory) if isinstance(memory, str) else memory
    refuse_cell(module, "bptt.unroll")
    check_callable(module, "bptt.unroll")
    if hasattr(state, "plan"):
        raise TypeError(f"bptt.unroll: got {state!r} as the state; write credit={state!r}")
    takes_carry = bool(declared(module, "takes_carry", False))
    takes_credit = bool(declared(module, "takes_credit", False))
    if takes_carry and state_batch_dim not in (None, own := declared(module, "state_batch_dim", 1)):
        raise ValueError(
            f"bptt.unroll: state_batch_dim={state_batch_dim} was given, but the module, which "
            f"takes carry and resets itself, has {own}; leave it out"
        )
    hands_on = takes_credit and memory is None and per_sequence is not False
    if not hands_on or batch_first is not None:
        layout = Layout.of(module, inputs, batch_first, state_batch_dim)
        crossings = layout.by_time("resets", resets)
    if hands_on:
        how = {"credit": credit, "resets": resets, "generator": generator}
        return pair(module(inputs, state, **how), *RETURNS)
    if per_sequence is None:
        per_sequence = takes_carry
    credit = as_credit(Full() if credit is None else credit)
    size, where = (layout.steps, layout.batch), "bptt.unroll"
    plan = plan_for(credit, *size, generator, where=where, together=not per_sequence)
    if takes_credit and memory is None:
        return pair(module(inputs, state, credit=plan, resets=resets), *RETURNS)
    crossing = Boundaries(plan, crossings, layout.state_dim, layout.batch)
    if takes_carry and memory is None and plan.is_product:
        found = module(inputs, state, **crossing.handed_on(layout, 0, layout.steps))
        return pair(found, *RETURNS)
    if isinstance(inputs, PackedSequence):
        raise ValueError(
            "bptt.unroll: a PackedSequence cannot be cut into pieces; pass [T, B, ...], padded, "
            "or a module of bptt with memory=None"
        )
    if state is not None:
        check_leaves(state, "bptt.unroll", "the state")
    is_given = state_batch_dim is not None
    if memory is None and plan.is_product:
        return _in_pieces(module, layout, inputs, state, crossing, is_given)
    refuse_bidirectional(module)
    return replayed(module, layout, inputs, state, plan, crossing, memory, takes_carry, is_given)


def _in_pieces(
    module: Recurrent,
    layout: Layout,
    inputs: Any,
    state: Any,
    crossing: Boundaries,
    is_given: bool,
) -> tuple[Any, Any]:
    """Call the module piece by piece, under autograd."""
    cuts = crossing.places()
    if len(cuts) > 1:
        refuse_bidirectional(module)
    outputs, has_graph, since = [], False, sequence_number()
    looked_at = {*cuts[1:3], cuts[-1]} - {0}  # a state kept in the module shows at each of these
    for first, end in pairwise([*cuts, layout.steps]):
        x, before = layout.piece(inputs, first, end), crossing.enter(first, state)
        mark = sequence_number() if first in looked_at else 0
        y, state = pair(module(x, before), *RETURNS)
        check_output(y, end - first, layout.time)
        if first == 0:
            if len(cuts) > 1:
                check_visible(state)
            check_batch(module, state, layout, end, is_given)
        elif first in looked_at and torch.is_grad_enabled():
            refuse_hidden_path((y, state), before, x, since, mark)
        is_settled = has_graph or end == layout.steps
        if not is_settled and is_detached(y, state) and crossing.passes(end):
            run, buffers = partial(_run, module), Buffers(modules_in(module))
            refuse_detached(run, buffers, x, before, "a single call of it")
            has_graph = True
        outputs.append(y)
    return join(outputs, layout.time), state


def _run(module: Recurrent, x: Any, state: Any) -> tuple[Any, Any]:
    return pair(module(x, state), *RETURNS)
