"""Units in another order, or some of them: ``h[:, order]``, ``index_select``, ``gather``.

All of them become ``gather`` of a state's numbers, seen as [B, units], at places that do not depend
on the state. What the places are, the operation itself finds from the numbers 0, 1, 2, ...; so
torch refuses, outside the loop, a place that is not there.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

A = torch.ops.aten


def choose(graph: fx.Graph, states: list[fx.Node]) -> bool:
    """Write such operations on what depends on a state as gather.

    Args:
        graph: changed in place.
        states: the placeholders of the states.

    Returns:
        Whether there were any. The new nodes do not know their shapes.
    """
    depends, found = set(states), False
    for node in list(graph.nodes):
        if any(n in depends for n in node.all_input_nodes):
            depends.add(node)
        given: Any = node.args
        if node.target not in _PLACES or given[0] not in depends:
            continue
        if any(n in depends for n in node.all_input_nodes if n is not given[0]):
            continue
        with graph.inserting_before(node):
            new = _gathered(graph, node)
        if new is not None:
            node.replace_all_uses_with(new)
            new.meta = dict(node.meta)
            depends.add(new)
            graph.erase_node(node)
            found = True
    return found


def _gathered(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Write one of them as gather; None if it is not among the numbers of each sequence."""

    def call(target: Any, *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    x: Any = node.args[0]
    before, after = x.meta["val"].shape, node.meta["val"].shape
    if len(before) < 2 or after[:1] != before[:1]:
        return None
    batch, units, chosen = before[0], prod(before[1:]), prod(after[1:])
    target: Any = node.target
    arguments = _PLACES[target](call, node)
    if arguments is None:
        return None
    numbers = call(A.view.default, call(A.arange.default, units), [1, *before[1:]])
    rest, rows = arguments
    if rows != 1:
        numbers = call(A.expand.default, numbers, [batch, *before[1:]])
    places = call(A.reshape.default, call(target, numbers, *rest), [rows, chosen])
    if rows == 1:
        places = call(A.expand.default, places, [batch, chosen])
    flat = call(A.reshape.default, x, [batch, units])
    return call(A.view.default, call(A.gather.default, flat, 1, places), list(after))


def _of_index(call: Any, node: fx.Node) -> tuple[list[Any], int] | None:
    """What the operation is given after the tensor, and for how many sequences: for all, or 1."""
    indices: Any = node.args[1]
    return ([[*indices]], 1) if indices[0] is None else None


def _of_index_select(call: Any, node: fx.Node) -> tuple[list[Any], int] | None:
    given: Any = node.args
    _, dim, index = given
    return ([dim, index], 1) if dim % node.meta["val"].dim() else None


def _of_gather(call: Any, node: fx.Node) -> tuple[list[Any], int] | None:
    given: Any = node.args
    _, dim, index = given[:3]
    shape = index.meta["val"].shape
    if not dim % len(shape):
        return None
    one = index.args[0] if index.target is A.expand.default else None
    if one is None or one.meta["val"].numel() != prod(shape[1:]):
        return [dim, index], shape[0]
    return [dim, call(A.view.default, one, [1, *shape[1:]])], 1


_PLACES = {
    A.index.Tensor: _of_index,
    A.index_select.default: _of_index_select,
    A.gather.default: _of_gather,
}
