"""Where the graph of a call takes in a tensor: what arrives there comes from this call alone.

Nothing is put into the graph for it. A view in between would add up what comes from the call before
the rest is added, and so round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Uses = dict[int, list[tuple[Node, int]]]
"""For each tensor: the nodes, and which of the gradients that they return is the tensor's."""

now: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""The number that the next node of a graph gets."""


def edges_of(tensors: Iterable[Tensor]) -> list[GradientEdge | None]:
    """Return where gradients of tensors arrive; None: they have none."""
    return [get_gradient_edge(v) if v.requires_grad else None for v in tensors]


def uses(results: Iterable[Tensor], edges: list[GradientEdge | None], since: int) -> Uses:
    """Find the nodes of a call's graph that take in these tensors.

    Args:
        results: what the call has returned.
        edges: the tensors.
        since: the number of the call's first node; older ones are of other calls.
    """
    wanted: dict[tuple[Node, int], int] = {}
    for number, edge in enumerate(edges):
        if edge is not None:
            wanted.setdefault((edge.node, edge.output_nr), number)
    found: Uses = {}
    todo = [v.grad_fn for v in results if v.grad_fn is not None] if wanted else []
    seen = set()
    while todo:
        node = todo.pop()
        if node in seen or node._sequence_nr() < since:
            continue
        seen.add(node)
        for place, (before, output) in enumerate(node.next_functions):
            if before is None:
                continue
            number = wanted.get((before, output), -1)
            if number >= 0:
                found.setdefault(number, []).append((node, place))
            else:
                todo.append(before)
    return found
