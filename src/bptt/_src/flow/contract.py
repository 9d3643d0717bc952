"""What a foreign module has to return, so that its gradient can be followed from step to step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bptt._src.flow.given import Given
from bptt._src.flow.untouched import same_random_numbers, untouched
from bptt._src.pytree import check_leaves, is_float, leaves_of, map_tensors

WAY_OUT = (
    "take the state as an argument and return it (snnTorch: init_hidden=False; spikingjelly: a "
    "wrapper that hands over and returns the neurons' v)"
)


def call(given: Given, x: Any, state: Any) -> tuple[Any, Any]:
    """Call a module, and check that it returned outputs and a state whose tensors can be seen.

    Raises:
        TypeError: it did not.
    """
    with _eagerly():
        found = given.module(x, map_tensors(Tensor.clone, state))  # it may change its own in place
    if not isinstance(found, tuple | list) or len(found) != 2:
        got = f"a {type(found).__name__}"
        got = f"{got} of {len(found)}" if isinstance(found, tuple | list) else got
        raise TypeError(
            f"{given.function}: the module must return (outputs, state), got {got}; if it "
            f"keeps its state in itself, {WAY_OUT}"
        )
    y, after = found
    check_leaves(after, given.function, "the state that the module returned")
    if not any(map(is_float, leaves_of(after))):
        kind = "None" if after is None else f"{type(after).__name__} without any"
        raise TypeError(
            f"{given.function}: expected a state with tensors of floating-point numbers from the "
            f"module, got {kind}; if it keeps its state in itself, {WAY_OUT}"
        )
    return y, after


def _eagerly() -> AbstractContextManager[Any]:
    """Run what is compiled as it was written: derivatives forwards and batches are not compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is, and to load it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def check_batch(given: Given, state: Any) -> None:
    """Refuse a state that does not have the inputs' batch where it should be.

    Raises:
        ValueError: a tensor of it has not.
    """
    batch, dim = given.layout.batch, given.layout.state_dim
    for s in leaves_of(state) if batch is not None else ():
        if is_float(s) and (s.dim() <= dim or s.shape[dim] != batch):
            raise ValueError(
                f"{given.function}: one of the state's tensors is {tuple(s.shape)}, where "
                f"dimension {dim} should be the batch of {batch}; say where it is with "
                "state_batch_dim (and batch_first, if the module takes [B, T, ...])"
            )


def check_attached(given: Given, after: Any) -> None:
    """Refuse a state that was returned without its graph.

    Raises:
        ValueError: no tensor of it requires a gradient.
    """
    if not any(s.requires_grad for s in floats(after)):
        raise ValueError(_detached(given, "the state that it returns"))


def check_step(given: Given, t: int, state: Any) -> None:
    """Refuse a module whose step t does not lead from the state that it is handed to the next.

    The step is taken again, in evaluation mode; the module is left as it was.

    Args:
        given: what is measured.
        t: the step.
        state: the state before it.

    Raises:
        ValueError: the module keeps a state in itself, detaches the one that it is handed or
            returns, or mixes the sequences of a batch.
    """
    x, before = given.layout.piece(given.inputs, t, t + 1), _leaves(state)
    with _aside(given):
        with same_random_numbers(given.inputs, given.parameters):
            y, after = call(given, x, before)
        again = call(given, x, _leaves(state))
        if not _are_close(floats((y, after)), floats(again)):
            raise ValueError(
                f"{given.function}: called twice with the same inputs and the same state, the "
                f"module returned two different results, so it keeps a state in itself; {WAY_OUT}"
            )
        check_attached(given, after)
        if (given.layout.batch or 1) > 1:
            _check_independent(given, before, y, after)
        found = _gradients((y, after), before)
    if all(g is None for g in found):
        raise ValueError(_detached(given, "the state that it is handed, or does not use it"))
    is_whole = None not in found and all(s.requires_grad for s in floats(after))
    if not is_whole and t + 1 < given.layout.steps and not _goes_on(given, t, state):
        raise ValueError(_detached(given, "a part of the state"))


def _check_independent(given: Given, before: Any, y: Any, after: Any) -> None:
    """Refuse a step whose first sequence depends on the state of another one."""
    layout, dim = given.layout, given.layout.state_dim
    own = [v.narrow(1 - layout.time, 0, 1) for v in floats(y)]
    own += [s.narrow(dim, 0, 1) for s in floats(after)]
    for g in _gradients(own, before):
        if g is not None and bool(g.narrow(dim, 1, g.shape[dim] - 1).any()):
            raise ValueError(
                f"{given.function}: what the module returns for one sequence depends on the state "
                f"of another one; expected the batch in dimension {1 - layout.time} of the inputs "
                f"and outputs and in dimension {dim} of the state (say where it is with "
                "batch_first and state_batch_dim), and sequences that are independent"
            )


def _detached(given: Given, what: str) -> str:
    return (
        f"{given.function}: the module detaches {what} (detach, .data, no_grad), so no gradient "
        "goes from one call to the call before; leave that out, and detach the state outside the "
        "module, between two updates"
    )


@contextmanager
def _aside(given: Given) -> Iterator[None]:
    with (
        untouched(given.module, evaluating=True),
        same_random_numbers(given.inputs, given.parameters),
        torch.enable_grad(),
    ):
        yield


def _goes_on(given: Given, t: int, state: Any) -> bool:
    """Whether two steps in one call have the gradient of two calls."""
    layout, found = given.layout, []
    for at_once in (True, False):
        with _aside(given):
            before = _leaves(state)
            if at_once:
                y, _ = call(given, layout.piece(given.inputs, t, t + 2), before)
                y = map_tensors(lambda v: v.narrow(layout.time, 1, 1), y)
            else:
                _, between = call(given, layout.piece(given.inputs, t, t + 1), before)
                y, _ = call(given, layout.piece(given.inputs, t + 1, t + 2), between)
            pairs = zip(floats(before), _gradients(y, before), strict=True)
            found.append([torch.zeros_like(s) if g is None else g for s, g in pairs])
    return _are_close(*found)


def _leaves(state: Any) -> Any:
    return map_tensors(lambda v: v.detach().clone().requires_grad_(is_float(v)), state)


def _gradients(of: Any, state: Any) -> list[Tensor | None]:
    roots, leaves = [v.sum() for v in floats(of) if v.requires_grad], floats(state)
    if not roots:
        return [None] * len(leaves)
    ones = [torch.ones_like(v) for v in roots]
    found = torch.autograd.grad(roots, leaves, ones, retain_graph=True, allow_unused=True)
    return list(found)


def _are_close(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * _largest(a), equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _largest(a: Tensor) -> float:
    return float(a.detach().abs().nan_to_num().amax()) if a.numel() else 0.0


def floats(tree: Any) -> list[Tensor]:
    """Return the tensors of a pytree through which gradients can flow."""
    return [v for v in leaves_of(tree) if is_float(v)]
