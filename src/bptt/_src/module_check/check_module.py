"""A gradcheck for recurrences."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch

from bptt._src.autograd import devices_of
from bptt._src.flow.untouched import same_random_numbers
from bptt._src.module_check.differences import reference_for
from bptt._src.module_check.given import Checked, subject
from bptt._src.module_check.gradients import gradients, precise_enough
from bptt._src.module_check.parts import alone_in_batch, packed, pieces, resets
from bptt._src.module_check.randomness import Modes, dropout, repeats
from bptt._src.module_check.result import Check, ModuleCheck, passed, skipped, wrong
from bptt._src.module_check.same import value_difference
from bptt._src.module_check.twice import double_backward
from bptt._src.module_check.view import WHERE, View
from bptt._src.unroll.buffers import modules_in


def check_module(
    module: Callable[..., Any],
    inputs: Any = None,
    state: Any = None,
    *,
    batch_first: bool | None = None,
    state_batch_dim: int | None = None,
    steps: int = 6,
    batch: int = 3,
    double: bool = True,
) -> ModuleCheck:
    """Check that a recurrent module computes what it should, forward and backward.

    :func:`torch.autograd.gradcheck` compares a function's gradient with finite differences. This
    does so for each pair of steps, and checks what a recurrence promises besides: a whole sequence
    equals its pieces from the returned state, each sequence of a batch itself on its own, a packed
    one itself unpacked, one with resets its separate calls; dropout has one mask in both passes and
    another in each call; second derivatives are right; and nothing but the arguments changes what
    a call returns.

    A copy of the module is checked, so its parameters, buffers and gradients, and torch's random
    state, are left as they were. Autocast is off meanwhile. Torch's wrappers, such as
    DistributedDataParallel and compiled modules, are looked through.

    Args:
        module: any callable ``(inputs, state) -> (outputs, state)`` over many steps, as
            :func:`bptt.unroll` takes it, in one direction or two; or one of torch.nn's cells. Wrap
            others that take single steps in :class:`bptt.Stepwise`.
        inputs: an example, [T, B, ...], or a pytree of such, with T ≥ 2; 6 steps of 3 sequences are
            enough. Drawn from a normal distribution by default, for a module with an
            ``input_size``.
        state: the initial state of the example. By default one that the module reaches from its
            own on other inputs, and calls without a state are checked, too.
        batch_first: whether inputs and outputs are [B, T, ...]; by default the module's attribute
            of that name, or False.
        state_batch_dim: the batch dimension of each of the state's tensors; by default the
            module's own attribute of that name, 1 for those of torch.nn and bptt, or the
            dimension in which each tensor has the batch's size.
        steps: T of inputs that are drawn.
        batch: B of inputs that are drawn.
        double: whether to run the copy in double precision. False: in the module's own; only the
            finite differences are taken in double precision. A module that cannot be cast, or a
            function, which cannot be copied, is run in its own precision as well, and the table
            says so.

    Returns:
        A :class:`bptt.checks.ModuleCheck`: the table of checks, which is true if none found
        anything wrong. Its ``assert_ok()`` raises an error that holds the table, for test suites.

    Raises:
        TypeError: the module cannot be called so, does not return ``(outputs, state)``, or takes
            single steps; or there are no inputs and it does not say what it takes.
        ValueError: sizes do not fit the layout.
        RuntimeError: it is called under ``torch.inference_mode()``.

    A surrogate gradient, as spiking neurons have it, is not the derivative of the values, so
    finite differences do not apply; it is compared with that of the module stepped.

    >>> import torch, bptt
    >>> check = bptt.check_module(torch.nn.LSTM(4, 8))
    >>> bool(check), check["packed"].verdict, check["resets"].verdict
    (True, 'passed', 'does not apply')
    >>> class Forgetful(torch.nn.LSTM):
    ...     def forward(self, x, state=None):
    ...         y, (h, c) = super().forward(x, state)
    ...         return y, (h, c.detach())
    >>> problem = bptt.check_module(Forgetful(4, 8)).problem
    >>> problem.of, problem.by, problem.t, problem.s, problem.found
    ('c_n', 'x', 5, 0, 0.0)
    """
    start = time.perf_counter()
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{WHERE}: no gradient can be found under torch.inference_mode(); leave it out"
        )
    how = (double, (steps, batch), batch_first, state_batch_dim)
    with _aside(module, inputs, state), subject(module, inputs, state, *how) as given:
        checks = tuple(_checks(given, state is not None))
        layout, precision = given.view.layout, given.precision
    seconds = time.perf_counter() - start
    return ModuleCheck(given.name, layout.steps, layout.batch, precision, checks, seconds)


def _checks(given: Checked, state_given: bool) -> list[Check]:
    view, exact = given.view, given.exact
    modes = Modes.of(view)
    view = replace(view, training=modes.trains)
    exact = None if exact is None else replace(exact, training=modes.trains)
    reference = reference_for(view, exact)
    rows = {"gradients of outputs": False, "gradients of final states": True}
    with _backward_in(view):
        found = [repeats(view, "state given", view.state)]
        if state_given:
            found.append(skipped("repeats, no state", "a state was given"))
        else:
            found.append(repeats(view, "no state", None))
        found += [modes.check(), _precise(view, exact)]
        of_values, surrogate = gradients(view, reference, rows)
        found += of_values
        if not state_given:
            own = replace(view, state=None), replace(reference, state=None)
            found += gradients(*own, {"gradients, no state": None}, surrogate)[0]
        found += _in_parts(view, modes, trusted=of_values[0].verdict == "passed")
        if surrogate or not precise_enough(reference):
            found.append(skipped("double backward", "finite differences do not apply"))
        else:
            found.append(double_backward(view, reference))
    return found + dropout(view, given.exact, modes, surrogate)


def _in_parts(view: View, modes: Modes, trusted: bool) -> list[Check]:
    if modes.evaluation_is_random is not None:
        why = "it draws random numbers in evaluation mode too, others in each call"
        names = ("two pieces", "single steps", "batch", "packed", "resets")
        return [skipped(name, why) for name in names]
    return [*pieces(view, trusted), alone_in_batch(view), packed(view), resets(view)]


def _precise(view: View, exact: View | None) -> Check:
    """Check that the module computes in its own precision what its copy does in double."""
    name = "own precision"
    if exact is None:
        return skipped(name, "there is one precision only")
    with torch.no_grad():
        own, other = (v.whole(v.inputs, v.state) for v in (view, exact))
    problem = value_difference(view, own, other)
    if problem is not None:
        return wrong(name, "expected: the values of a copy in double precision", problem)
    return passed(name, "the values are those of a copy in double precision, but for rounding")


def _backward_in(view: View) -> AbstractContextManager[Any]:
    """Leave cuDNN aside in evaluation mode, in which it has no backward pass."""
    is_on_cuda = any(p.is_cuda for part in view.parts for p in part.parameters())
    if is_on_cuda and not view.training:
        aside: AbstractContextManager[Any] = torch.backends.cudnn.flags(enabled=False)
        return aside
    return nullcontext()


def _aside(*given: Any) -> ExitStack:
    """Leave torch's generators as they are, record graphs, and run without autocast or compiler."""
    own = [v for m in modules_in(given[0]) for v in (*m.parameters(), *m.buffers())]
    kinds = {"cpu", *(d.type for d in devices_of(own, *given))}
    stack = ExitStack()
    stack.enter_context(same_random_numbers(own, *given))
    stack.enter_context(torch.enable_grad())
    for kind in kinds:
        if torch.amp.is_autocast_available(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    if "torch._dynamo" in sys.modules:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    return stack
