"""Whether a backward pass computes gradients of parameters; one that does not is of no loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_will_run: Callable[[Any], bool] = torch._C._will_engine_execute_node
_asked: list[list[int]] = []
"""What torch.autograd.grad is asked for now: the ids of its inputs; the innermost call is last."""


@contextmanager
def noted() -> Iterator[None]:
    """Note what torch.autograd.grad is asked for, until the end of the block."""
    before = torch.autograd.grad

    def grad(outputs: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        wanted: Any = [inputs] if isinstance(inputs, Tensor | GradientEdge) else list(inputs)
        _asked.append([id(v) for v in wanted])
        try:
            return before(outputs, wanted, *args, **options)
        finally:
            _asked.pop()

    torch.autograd.grad = grad
    try:
        yield
    finally:
        torch.autograd.grad = before


def is_run(leaf: Tensor) -> bool:
    """Whether the backward pass that runs now computes the gradient of a leaf."""
    try:
        return _will_run(torch.autograd.graph.get_gradient_edge(leaf).node)
    except RuntimeError as e:
        if "autograd.grad" not in str(e):
            raise
        return True  # so it says of a leaf that torch.autograd.grad is asked for


def leaves_of(results: Iterable[Tensor | None], key: object) -> Iterator[Tensor]:
    """Find the leaves of the graph of these tensors, but for what was found with the key before."""
    todo = [v.grad_fn for v in results if v is not None]
    while todo:
        node = todo.pop()
        if node is None:
            continue
        notes = cast(dict[Any, Any], node.metadata)
        if key in notes:
            continue
        notes[key] = True  # kept as long as the node is, and keeps nothing
        if hasattr(node, "variable"):
            yield node.variable
        todo += [before for before, _ in node.next_functions]


def reaches(parameters: Sequence[Tensor]) -> tuple[bool, bool]:
    """Whether the backward pass that runs now computes a gradient of any of these.

    Returns:
        That, and whether it returns the gradient, as torch.autograd.grad does, instead of adding
        it to ``grad``.
    """
    nodes = [torch.autograd.graph.get_gradient_edge(p).node for p in parameters]
    is_returned = bool(_asked)
    try:  # what arrives at a frozen network goes on to something else, and counts
        reached = any(_will_run(n) for n in nodes) or not nodes
    except RuntimeError as e:
        if "autograd.grad" not in str(e):
            raise
        is_returned = True
        reached = not _asked or any(id(p) in _asked[-1] for p in parameters)
    # What is returned with a graph is for a penalty, or an inner step.
    return reached and not (is_returned and torch.is_grad_enabled()), is_returned
