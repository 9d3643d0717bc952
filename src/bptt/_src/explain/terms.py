"""The terms C[t, s] of any module's parameters, by their definition.

The module is run step by step, each step a graph of its own. The gradient of the loss at y_t goes
back through step t, and on from state to state; what it leaves at the parameters in step s is
C[t, s]. The gradient at y_t is that of the whole loss, so the loss need not be a sum over steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt._src.flow.contract import call, check_attached, check_batch, check_step, floats
from bptt._src.flow.given import Given
from bptt._src.layout import join
from bptt._src.pytree import is_float, map_tensors
from bptt._src.unroll.calls import check_output
from bptt.errors import ConfigError


class _Graph(NamedTuple):
    before: list[Tensor]
    """The state before it: leaves."""
    y: list[Tensor]
    after: list[Tensor]


def terms_of(
    given: Given, loss_fn: Callable[[Any], Tensor], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Compute C[t, s] of each parameter, [T, T, N], N its number of entries; 0 for s > t.

    Raises:
        ConfigError: the loss is no scalar, or no gradient arrives at the outputs.
        TypeError: the module does not return outputs and a state.
        ValueError: the module keeps or detaches its state.
    """
    steps, outputs = _run(given)
    layout = given.layout
    d_y = _at_outputs(given, outputs, loss_fn)
    T = layout.steps
    found = [p.new_zeros(T, T, p.numel()) for p in parameters]
    for t in range(T):
        roots, gradients = steps[t].y, [d.narrow(layout.time, t, 1) for d in d_y]
        for s in range(t, -1, -1):
            at_state, at_parameters = _through(steps[s], roots, gradients, parameters)
            for C, g in zip(found, at_parameters, strict=True):
                if g is not None:
                    C[t, s] = g.flatten()
            if s:
                roots, gradients = steps[s - 1].after, at_state
    return found


def _run(given: Given) -> tuple[list[_Graph], Any]:
    """Run the module step by step; return the steps' graphs and the outputs, joined."""
    layout, state = given.layout, map_tensors(torch.Tensor.detach, given.state)
    steps, outputs, checked = [], [], False
    for t in range(layout.steps):
        if floats(state) and not checked and layout.steps > 1:
            check_step(given, t, state)
            checked = True
        with torch.enable_grad():
            before = map_tensors(lambda v: v.detach().requires_grad_(is_float(v)), state)
            y, after = call(given, layout.piece(given.inputs, t, t + 1), before)
        check_output(y, 1, layout.time)
        check_batch(given, after)
        if floats(before):
            check_attached(given, after)
        steps.append(_Graph(floats(before), floats(y), floats(after)))
        outputs.append(map_tensors(torch.Tensor.detach, y))
        state = map_tensors(torch.Tensor.detach, after)
    return steps, join(outputs, layout.time)


def _at_outputs(given: Given, outputs: Any, loss_fn: Callable[[Any], Tensor]) -> list[Tensor]:
    """Return the loss's gradient at the outputs of all steps, for each of their tensors."""
    with torch.enable_grad():
        outputs = map_tensors(lambda v: v.requires_grad_(is_float(v)), outputs)
        loss = loss_fn(outputs)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            f"{given.function}: loss_fn must return a scalar, got {got}; sum it, or take the mean"
        )
    leaves = floats(outputs)
    found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()
    if not any(g is not None and bool(g.any()) for g in found):
        raise ConfigError(
            f"{given.function}: no gradient of the loss arrives at the outputs; loss_fn must "
            "depend on what it is given"
        )
    return [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, found, strict=True)]


def _through(
    step: _Graph, roots: list[Tensor], gradients: list[Tensor], parameters: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Take gradients back through a step: to the state before it, and to the parameters."""
    used = [(v, g) for v, g in zip(roots, gradients, strict=True) if v.requires_grad]
    if not used:
        return [torch.zeros_like(v) for v in step.before], [None] * len(parameters)
    found = torch.autograd.grad(
        [v for v, _ in used],
        [*step.before, *parameters],
        [g for _, g in used],
        retain_graph=True,
        allow_unused=True,
    )
    at_state = found[: len(step.before)]
    filled = [
        torch.zeros_like(v) if g is None else g for v, g in zip(step.before, at_state, strict=True)
    ]
    return filled, list(found[len(step.before) :])
