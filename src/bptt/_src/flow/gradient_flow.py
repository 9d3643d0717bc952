"""``bptt.gradient_flow``: how strongly the loss of each step reaches each step before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bptt._src.flow.cotangents import cotangents, of_random_directions
from bptt._src.flow.dynamics import measure_given
from bptt._src.flow.flow import GradientFlow
from bptt._src.flow.given import Given
from bptt._src.flow.layers import through_layers
from bptt._src.flow.one_step import OneStep, placed, refuse_others
from bptt._src.flow.pairs import Found, Pairs
from bptt._src.flow.stepwise import through_steps
from bptt._src.flow.truncation_bias import TruncationBias
from bptt._src.flow.untouched import same_random_numbers, untouched
from bptt._src.layers import Layers
from bptt._src.pytree import is_float, leaves_of
from bptt.init import cells_in


def gradient_flow(
    module: Any,
    inputs: Any,
    loss_fn: Callable[[Any], Tensor] | None = None,
    state: Any = None,
    *,
    times: Sequence[int] | None = None,
    lags: int | None = None,
    attribution: bool | None = None,
    dynamics: bool | None = None,
    excerpt: bool = False,
    resets: Tensor | None = None,
    tokens: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    name: str | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
    budget: int = 2**28,
    check: bool = True,
) -> GradientFlow:
    """Measure how strongly the loss of each step reaches the states of all steps before it.

    It is ‖∂L_t/∂h_s‖ for all pairs of t and s, layer by layer, sequence by sequence, an LSTM's
    cell told apart (:class:`GradientFlow` says what is meant exactly). The gradients of all the
    losses travel back together. In the networks of bptt and torch.nn each step of each sequence is
    made one matrix, which takes all of them to the step before; where few losses are followed,
    they go side by side through the kernels, as windows that overlap. Any other module is run
    step by step, and each of its steps gives its vector-Jacobian product of all of them at once,
    where torch knows how to batch it, and one by one where it does not.

    Gradients are those of the network as it is: in training mode units are dropped or kept, the
    same ones for all losses. The module and torch's generators are left as they were: no ``grad``,
    buffer or attribute changes, and the next call drops the same units again unless torch is
    seeded.

    Args:
        module: what :func:`bptt.unroll` takes: ``(inputs, state) -> (outputs, state)``, in one
            direction. The sequences of a batch must not depend on each other.
        inputs: [T, B, ...], or a nest of such.
        loss_fn: ``outputs -> losses``, a loss for each step, [T, B], or [T] where it is one for
            all sequences together, time first in either. One that is followed may depend on the
            outputs of its own step only. With [T] a sequence's norms are those of the derivative
            of L_t with respect to its states: for a mean over B sequences, the B-th part of those
            of its own loss.
            Or the loss of a single step, such as ``outputs -> criterion(outputs[-1], target)``: a
            scalar or [B]. Only this loss is followed, back from the step on whose output it
            depends; one that depends on the outputs of several steps is refused.
            By default L_t = ⟨v_t, y_t⟩, with directions v_t of length 1 that are drawn from a
            fixed seed.
        state: the initial state; None where the module knows how to begin.
        times: the steps whose losses are followed; -1 is the last; all by default.
        lags: how many lags are followed, lag 0 included; all by default.
        attribution: whether to find what each input contributes to each loss,
            Σ_i ∂L_t/∂x_{s,i} · x_{s,i}, at the price of one more product per step. By default
            wherever the inputs are floating-point numbers.
        dynamics: whether to measure the layers' Jacobians, weights and activity as well. By
            default only for the networks of bptt and torch.nn: any other module is run again for
            each product with a Jacobian, which takes 10 to 20 times as long as all the rest.
        excerpt: whether the sequences are cut out of longer ones, as a window is of a stream. What
            is suggested then takes into account that the gradient goes on beyond the first step.
        resets: [T], or [T, B] ([B, T] where the module is ``batch_first``) bool: the state is set
            to zero before step t where it is true.
        tokens: what is fed in at each step, in words, for reports, [T].
        targets: what is to be predicted, [T].
        name: what to call it in a report; by default the module's class and size.
        state_batch_dim: where the batch lies in each of the state's tensors, as for
            :func:`bptt.unroll`.
        batch_first: whether inputs are [B, T, ...], likewise.
        budget: bytes that gradients on their way may take; the losses of as many steps as fit
            into it travel together. Results do not depend on it.
        check: whether to make sure that the losses followed depend on their own steps only, which
            takes a second backward pass through ``loss_fn``; and of a foreign module, by some more
            calls of one step, that all of its state is in what it returns.

    Raises:
        RuntimeError: it is called under ``torch.inference_mode()``.
        TypeError: the module cannot be called, or does not return outputs and a state whose
            tensors can be seen; or an option is of another type.
        ValueError: sizes do not fit; the module has two directions, keeps a state in itself or
            detaches it; the losses are neither one for each step nor that of a
            single step, or a step's loss depends on other steps' outputs.

    >>> import torch, bptt
    >>> flow = bptt.gradient_flow(torch.nn.LSTM(3, 8), torch.randn(50, 4, 3))
    >>> flow.norms.shape, [s.name for s in flow.states], flow.of(name="cell")[20, 10] > 0
    (torch.Size([50, 50]), ['hidden', 'cell'], tensor(True))
    """
    given = Given.of(
        "gradient_flow",
        module,
        inputs,
        state,
        resets=resets,
        state_batch_dim=state_batch_dim,
        batch_first=batch_first,
    )
    module, layout = given.module, given.layout
    pairs = Pairs.of(layout.steps, layout.batch or 1, times, lags)
    _check_words(layout.steps, tokens=tokens, targets=targets)
    _check_switches(excerpt=excerpt, check=check)
    _check_budget(budget)
    _check_switch("attribution", attribution)
    _check_switch("dynamics", dynamics)
    attributed = _is_attributed(attribution, inputs)
    has_dynamics = _has_dynamics(dynamics, given)
    follow = partial(_follow, given, budget, attributed, check)
    try:
        found = follow(loss_fn, pairs)
    except OneStep as one:
        assert loss_fn is not None  # by default there is a loss for each step
        refuse_others(one.step, pairs, times)
        pairs = Pairs.of(pairs.steps, pairs.batch, [one.step], lags)
        loss_fn = partial(placed, loss_fn=loss_fn, step=one.step, steps=pairs.steps)
        found = follow(loss_fn, pairs)
    measured = measure_given(given) if has_dynamics else None
    losses = found.losses[list(pairs.times)]
    by_default = partial(
        of_random_directions, steps=pairs.steps, batch=pairs.batch, time=layout.time
    )
    options = {
        "resets": resets,
        "state_batch_dim": state_batch_dim,
        "batch_first": batch_first,
    }
    return GradientFlow(
        name=_name(module) if name is None else name,
        module=_in_words(module),
        times=pairs.times,
        steps=pairs.steps,
        batch=pairs.batch,
        lags=pairs.lags,
        states=found.states,
        losses=losses,
        attribution=found.attribution,
        tokens=None if tokens is None else tuple(tokens),
        targets=None if targets is None else tuple(targets),
        dynamics=measured,
        excerpt=excerpt,
        kinds=cells_in(module),
        bias_of=TruncationBias(
            module, inputs, loss_fn or by_default, state, pairs.times, losses, options
        ),
    )


def _follow(
    given: Given,
    budget: int,
    attributed: bool,
    check: bool,
    loss_fn: Callable[[Any], Tensor] | None,
    pairs: Pairs,
) -> Found:
    time = given.layout.time
    begin = partial(cotangents, loss_fn=loss_fn, pairs=pairs, time=time, check=check)
    with untouched(given.module), same_random_numbers(given.inputs, given.state, given.parameters):
        if given.ours is not None:
            return through_layers(given, begin, pairs, budget, attributed)
        return through_steps(given, begin, pairs, budget, attributed, check)


def _is_attributed(wanted: bool | None, inputs: Any) -> bool:
    can = any(is_float(x) for x in leaves_of(inputs))
    if wanted and not can:
        raise ValueError(
            "gradient_flow: attribution=True needs inputs that are floating-point numbers; give "
            "what the module's embedding makes of them, or leave it out"
        )
    return can if wanted is None else wanted


def _has_dynamics(wanted: bool | None, given: Given) -> bool:
    if wanted:
        given.needs_batch()
    return given.ours is not None if wanted is None else wanted


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool | None):
        raise TypeError(f"gradient_flow: {name} must be True, False or None, got {value!r}")


def _check_switches(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise TypeError(f"gradient_flow: {name} must be True or False, got {value!r}")


def _check_budget(budget: object) -> None:
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise ValueError(f"gradient_flow: budget must be a number of bytes, got {budget!r}")


def _check_words(steps: int, **given: Sequence[str] | None) -> None:
    for name, words in given.items():
        if words is not None and (isinstance(words, str) or len(words) != steps):
            found = "a single string" if isinstance(words, str) else f"{len(words)} of them"
            raise ValueError(f"gradient_flow: expected {name} for {steps} steps, got {found}")


def _name(module: Any) -> str:
    kind = type(module).__name__
    if isinstance(module, Layers | torch.nn.RNNBase):
        kind = kind if isinstance(module, torch.nn.RNNBase) else module.cell.name
        phi = getattr(module, "nonlinearity", None)
        layers = "" if module.num_layers == 1 else f"{module.num_layers} × "
        return f"{layers}{kind} {module.hidden_size}{f' {phi}' if phi else ''}"
    return str(getattr(module, "__name__", kind))


def _in_words(module: Any) -> str:
    return " ".join(str(module).split()) if isinstance(module, torch.nn.Module) else _name(module)
