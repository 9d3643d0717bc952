"""The audit of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from bptt._src.audit.labels import Labels
from bptt._src.audit.listener import Listener
from bptt._src.audit.reaching import noted
from bptt._src.audit.reading import AUTO
from bptt._src.audit.report import Audit
from bptt._src.audit.subject import Subject
from bptt._src.engines.loops.step import is_apart

EXPLAINED = ("backward through the graph a second time", "modified by an inplace operation")
"""Errors of a run whose reason is in the state that it carries."""


def audit(
    run: Callable[[], Any],
    model: Any,
    module: Any = None,
    *,
    steps: int = 256,
    label: Callable[[Any], Any] | None = None,
    episodes: Any = None,
    state: Any = None,
    time: Any = AUTO,
) -> Audit:
    """Find out which losses a training loop credits to which steps, and what the state remembers.

    The run is your own code, or a framework's, some updates of it; nothing has to be written for
    the audit. It computes what it would compute otherwise, to the bit: each call of the module is
    recorded, and hooks hear which gradients arrive at its outputs and states in the backward
    passes. A gradient that arrives at the outputs of step t is a loss of step t. Where the state
    goes is found in the graph, and by its values where it is cut from it. Code that is compiled
    runs as it is written meanwhile, which may round differently.

    Args:
        run: the code, called once without arguments.
        model: what holds the module: any object; or the module itself, a class of modules, or a
            predicate ``(module) -> bool``, for one that is made within the run.
        module: the path of the module in the model, as ``"encoder.rnn"``: attributes and
            indices; or as ``model`` without it.
        steps: after how many steps recording ends. A call of T steps counts T.
        label: ``(x) -> (stream, step)``: which stream and which step of it each input is, two
            integers for each [T, B]; x is the module's first argument, laid out [T, B, ...].
            Without it, the steps are numbered by the order of calls, and a sequence is a row of
            the batch.
        episodes: which episode each step belongs to, integers [T] or [T, B] by number of step and
            sequence, -1 for padding; bools are taken for episodes' starts; or a function of x, as
            ``label``, that returns integers. Then what crosses an episode's end is a fault.
        state: names of attributes in which the module keeps its state, as ``("mem",)``; or an
            adaptor, an object with two methods: ``given(*args, **options)``, which returns the
            state among the arguments of a call, and ``returned(output)``, which returns
            ``(outputs, state)``. By default the module returns ``(outputs, state)`` and takes the
            state as torch.nn's do; a cell returns the state alone.
        time: the dimension of time, or None if each call is one step. By default that of
            ``batch_first``, and one step if outputs of another's module have two dimensions.

    Returns:
        The matrices and the findings; ``print`` it.

    Raises:
        TypeError: there is no such module, or its state is not found.
        ValueError: the module was not called, or several match; labels or episodes do not fit.
        RuntimeError: the module is run again inside a nested backward pass, as by a checkpoint
            with ``use_reentrant=True``, or inside a transform of torch.func.

    What the run raises is raised, but for torch's errors that a graph was freed or its values
    changed: these have their reason in the state, which the report names.

    >>> import torch, bptt
    >>> rnn, head = torch.nn.LSTM(3, 8), torch.nn.Linear(8, 1)
    >>> optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.1)
    >>> def run():
    ...     state = None
    ...     for window in torch.randn(6, 2, 3).split(3):
    ...         y, (h, c) = rnn(window, state)
    ...         optimizer.zero_grad()
    ...         head(y).square().mean().backward()
    ...         optimizer.step()
    ...         state = h.detach(), c.detach()
    >>> report = bptt.audit(run, rnn)
    >>> bool(report.is_(bptt.Truncated(3))), report.faults
    (True, ())
    """
    if not callable(run):
        raise TypeError(
            f"bptt.audit: expected run, a function that trains when it is called, got {run!r}"
        )
    if steps < 1:
        raise ValueError(f"bptt.audit: steps must be at least 1, got {steps}")
    labels, subject = Labels(label, episodes), Subject(model, module)
    heard: dict[nn.Module, Listener] = {}

    def hear(of: nn.Module, forward: Any, args: Any, options: Any, unrolled: Any) -> Any:
        if is_apart():  # bptt.fuse traces it
            return forward(*args, **options)
        if of not in heard:
            heard[of] = Listener(of, labels, state, time, steps)
            listening.enter_context(heard[of].listening())
        return heard[of].call(forward, args, options, unrolled)

    failure: Exception | None = None
    with ExitStack() as listening, subject.heard_by(hear), _as_written(), noted():
        try:
            run()
        except RuntimeError as e:
            if not any(words in str(e) for words in EXPLAINED) or not heard:
                raise
            failure = e
    listener = _only(heard, subject)
    listener.record.failure, listener.record.reach = failure, listener.inputs.reach()
    return Audit(listener.record, labels.has_episodes, label is not None)


def assert_credit(
    run: Callable[[], Any], model: Any, module: Any, expected: Any, **options: Any
) -> None:
    """Assert, in a test, that a training loop has no fault and credits what you expect.

    Args:
        run: as for :func:`bptt.audit`.
        model: as there.
        module: as there; None if ``model`` is the module.
        expected: a credit, its spelling, a plan or a matrix, as for ``Audit.is_``; None: anything.
        options: the further arguments of :func:`bptt.audit`.

    Raises:
        AssertionError: the report has a fault, or its credit is another; the message is the report.

    >>> import torch, bptt
    >>> rnn = torch.nn.GRU(3, 8)
    >>> def run():
    ...     y, _ = rnn(torch.randn(5, 2, 3))
    ...     y.square().mean().backward()
    >>> bptt.assert_credit(run, rnn, None, bptt.Full())
    """
    report = audit(run, model, module, **options)
    compared = None if expected is None else report.is_(expected)
    if report.faults or (compared is not None and not compared):
        first = "" if compared is None or compared else f"{compared}\n\n"
        raise AssertionError(f"{first}{report}")


def _only(heard: dict[nn.Module, Listener], subject: Subject) -> Listener:
    if not heard:
        raise ValueError(
            f"bptt.audit: the run never called the module, {subject.name}; if it trains a copy, "
            "or makes the module itself, give its class or a predicate; of what bptt.fuse gave, "
            "audit the whole, not its cell"
        )
    if len(heard) > 1:
        names = ", ".join(
            f"{type(m).__name__} (called {len(v.record.calls)} times)" for m, v in heard.items()
        )
        raise ValueError(
            f"bptt.audit: {len(heard)} modules match {subject.name}: {names}; give the path of "
            "one, or a predicate that only one meets"
        )
    return next(iter(heard.values()))


@contextmanager
def _as_written() -> Iterator[None]:
    """Run compiled code uncompiled."""
    if "torch._dynamo" not in sys.modules:  # what is compiled later leaves the module out
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
