"""Whether a backward pass computes gradients of parameters; one that does not is of no loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def reaches(parameters: Sequence[Tensor]) -> tuple[bool, bool]:
    """Whether the backward pass that runs now computes a gradient of any of these.

    Returns:
        That, and whether it returns the gradient, as torch.autograd.grad does, instead of adding
        it to ``grad``.
    """
    if not parameters:
        return True, False
    nodes = [torch.autograd.graph.get_gradient_edge(p).node for p in parameters]
    try:
        return any(_will_run(n) for n in nodes), False
    except RuntimeError as e:
        if "autograd.grad" not in str(e):
            raise
    if torch.is_grad_enabled():  # it creates a graph: its result is a penalty, or an inner step
        return False, True
    return not _asked or any(id(p) in _asked[-1] for p in parameters), True
