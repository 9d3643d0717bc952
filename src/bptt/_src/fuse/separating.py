"""Products of what is put side by side, as sums of products: W [x, h] = W_x x + W_h h.

So the input's part leaves the loop over the steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

A = torch.ops.aten


def separate(graph: fx.Graph, states: list[fx.Node]) -> bool:
    """Separate the products of which one part depends on a state and another does not.

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
        if node.target not in (A.mm.default, A.addmm.default) or node.kwargs:
            continue
        *bias, left, right = node.args
        parts = _side_by_side(left)
        if len({p in depends for p in parts}) == 2:
            with graph.inserting_before(node):
                total = _sum_of_products(graph, parts, right, bias, depends)
            node.replace_all_uses_with(total)
            graph.erase_node(node)
            found = True
    return found


def _side_by_side(node: fx.Node) -> list[fx.Node]:
    if node.target is not A.cat.default:
        return []
    parts, dim = (*node.args, 0)[:2]
    return list(parts) if node.meta["val"].dim() == 2 and dim in (1, -1) else []  # type: ignore[arg-type]


def _sum_of_products(
    graph: fx.Graph,
    parts: list[fx.Node],
    right: fx.Node,
    bias: list[Any],
    depends: set[fx.Node],
) -> fx.Node:
    """Add up the products of parts that follow each other and depend alike on the states."""

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        if any(n in depends for n in node.all_input_nodes):
            depends.add(node)
        return node

    groups: list[list[fx.Node]] = []
    for part in parts:
        if groups and (groups[-1][0] in depends) == (part in depends):
            groups[-1].append(part)
        else:
            groups.append([part])
    total, begin = None, 0
    for group in groups:
        end = begin + sum(p.meta["val"].shape[1] for p in group)
        left = group[0] if len(group) == 1 else call(A.cat.default, group, 1)
        some = call(A.slice.Tensor, right, 0, begin, end)
        is_outside = group[0] not in depends
        if is_outside and bias:
            product = call(A.addmm.default, bias.pop(), left, some)
        else:
            product = call(A.mm.default, left, some)
        total = product if total is None else call(A.add.Tensor, total, product)
        begin = end
    assert total is not None
    return total
