"""Helpers for autograd graphs and RNG state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from bptt._src.limits import cannot_batch
from bptt._src.pytree import is_float, leaves_of

Gradients = list[Tensor | None]


def as_leaf(v: Tensor, wanted: bool | None = None) -> Tensor:
    """Return a leaf with the same values, which requires a gradient if wanted."""
    wanted = v.requires_grad if wanted is None else wanted
    leaf = v.detach()
    return leaf.requires_grad_() if wanted and is_float(v) else leaf


def vjp(outputs: list[Any], inputs: list[Tensor], given: Gradients, *, keep: bool) -> Gradients:
    used = [
        (y, d) for y, d in zip(outputs, given, strict=True) if d is not None and y.requires_grad
    ]
    if not used or not inputs:
        return [None] * len(inputs)
    ys, ds = zip(*used, strict=True)
    try:
        with _without_hooks(inputs):
            return list(torch.autograd.grad(ys, inputs, ds, retain_graph=keep, allow_unused=True))
    except RuntimeError as e:
        if "non-empty donated buffers" not in str(e):
            raise
        raise RuntimeError(
            "bptt.unroll: torch compiled the module for a single backward pass, but overlapping "
            "windows need several; set torch._functorch.config.donated_buffer = False before the "
            "first call, or call torch._dynamo.reset() after setting it"
        ) from e


def batched_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], given: Sequence[Tensor]
) -> Gradients | None:
    """Compute vector-Jacobian products of several vectors at once.

    Args:
        outputs: what is differentiated; its graph is kept.
        inputs: with respect to what.
        given: the vectors for each output, [n, ...].

    Returns:
        The products for each input, [n, ...]; None instead if the module has an operation without
        a batched derivative.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = torch.autograd.grad(
                outputs, inputs, given, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError as e:  # a NotImplementedError is one too
        if not cannot_batch(e):
            raise
        return None
    return list(found)


def vjp_together(
    outputs: list[Any], inputs: list[Tensor], each: list[Gradients]
) -> list[Gradients] | None:
    """The products of several gradients, as :func:`batched_vjp`."""
    used = []
    for n, y in enumerate(outputs):
        column = [g[n] for g in each]
        if y.requires_grad and any(d is not None for d in column):
            used.append((y, torch.stack([torch.zeros_like(y) if d is None else d for d in column])))
    if not used:
        return [[None] * len(inputs) for _ in each]
    ys, ds = zip(*used, strict=True)
    found = batched_vjp(ys, inputs, ds)
    if found is None:
        return None
    return [[None if g is None else g[k] for g in found] for k in range(len(each))]


@contextmanager
def _without_hooks(leaves: list[Tensor]) -> Iterator[None]:
    """Suspend the hooks of ``Tensor.register_hook``, which are for the sum of all parts."""
    hooks = [(v._backward_hooks, dict(v._backward_hooks)) for v in leaves if v._backward_hooks]
    try:
        for own, _ in hooks:
            own.clear()
        yield
    finally:
        for own, kept in hooks:
            own.update(kept)


def added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more


def summed(gradients: list[Gradients]) -> Gradients:
    total = gradients[0]
    for more in gradients[1:]:
        total = [added(a, b) for a, b in zip(total, more, strict=True)]
    return total


def sequence_number() -> int:
    """A number below those of all nodes made from now on."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).view(()).grad_fn
    return int(node._sequence_nr())


def leaves_of_graph(roots: list[Tensor], known: set[int], mark: int) -> list[Tensor]:
    """Find the leaves of a graph; tensors computed before ``mark`` are refused."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    stack: list[Any] = [t.grad_fn for t in roots if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        elif node._sequence_nr() <= mark:
            raise RuntimeError(
                f"bptt.unroll: the module uses a tensor that was computed outside of it (by "
                f"{node.name()}), which cannot be run again; compute it inside, or use memory=None"
            )
        else:
            stack += [n for n, _ in node.next_functions]
    return [v for k, v in found.items() if k not in known]


def devices_of(*nests: Any) -> list[torch.device]:
    tensors = [t for n in nests for t in leaves_of(n) if isinstance(t, Tensor)]
    return sorted({t.device for t in tensors if t.device.type != "cpu"}, key=str)


def random_state(devices: list[torch.device]) -> list[Tensor]:
    return [
        torch.get_rng_state(),
        *(torch.get_device_module(d).get_rng_state(d) for d in devices),
    ]


def autocast_of(devices: list[torch.device]) -> list[dict[str, Any]]:
    return [
        {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        for kind in {"cpu", *(d.type for d in devices)}
        if torch.amp.is_autocast_available(kind)
    ]


@contextmanager
def autocast_as(were: list[dict[str, Any]]) -> Iterator[None]:
    """Set autocast as :func:`autocast_of` found it.

    Its cached copies of weights are not used: they may have been made without a graph, or
    belong to a graph that no longer exists.
    """
    with ExitStack() as stack:
        for options in were:
            if options["enabled"] or torch.is_autocast_enabled(options["device_type"]):
                torch.clear_autocast_cache()
                stack.callback(torch.clear_autocast_cache)
                stack.enter_context(torch.autocast(**options))
        yield


def nodes_between(roots: list[Tensor], known: list[Tensor], since: int, mark: int) -> str | None:
    """Find a node of a graph that was made after ``since`` and up to ``mark``.

    Args:
        roots: the tensors from which the graph is searched.
        known: tensors beyond which the graph is not followed.
        since: nodes up to this number do not count, and are not followed.
        mark: the last number that counts.

    Returns:
        The node's name, or None.
    """
    seen: set[Any] = {None, *(v.grad_fn for v in known)}
    stack: list[Any] = [v.grad_fn for v in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # a leaf, whose number means nothing
            continue
        number = node._sequence_nr()
        if number <= since:
            continue
        if number <= mark:
            return str(node.name())
        stack += [n for n, _ in node.next_functions]
    return None
