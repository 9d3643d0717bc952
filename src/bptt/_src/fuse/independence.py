"""That each part of a step treats the sequences of a batch independently of each other.

Only then may a part run on all steps at once. Shapes show it first: a result has one row for each
sequence, or does not depend on what is given. Then numbers do: groups of sequences are made NaN,
and are replaced by others, and the rows of all other sequences must stay as they were.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx

from bptt._src.engines.loops.step import quietly
from bptt._src.fuse.tracing import BATCHES, Example, StepGraph, name_of
from bptt.errors import FuseError


def has_rows(graph: StepGraph, node: fx.Node) -> bool:
    """Whether a result has one row for each sequence.

    Raises:
        bptt.errors.FuseError: its size depends on the batch in another way.
    """
    here, there = node.meta.get("val"), graph.twin[node].meta.get("val")
    if not isinstance(here, Tensor) or not isinstance(there, Tensor):
        return False
    if here.shape == there.shape:
        return False
    if here.shape[1:] == there.shape[1:] and (here.shape[0], there.shape[0]) == BATCHES:
        return True
    hint = ""
    if here.dim() > 2:
        hint = ", and write products of heads as torch.einsum('bhd,hde->bhe', h, weight)"
    raise FuseError(
        f"bptt.fuse: {name_of(node)} gives a tensor of shape {list(here.shape)} for a batch of "
        f"{BATCHES[0]}, and {list(there.shape)} for one of {BATCHES[1]}: keep the batch in the "
        f"first dimension, and nothing of it in others{hint}"
    )


def check_independence(graph: StepGraph, example: Example) -> None:
    """Refuse a step in which the sequences of a batch depend on each other.

    Raises:
        bptt.errors.FuseError: they do; names the operation.
    """
    given = {*graph.x, *graph.state}
    depends: dict[fx.Node, bool] = {}
    rows = []
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        depends[node] = node in given or any(depends[n] for n in node.all_input_nodes)
        if has_rows(graph, node):
            rows.append(node)
            _check_slice(node)
        elif depends[node] and isinstance(node.meta.get("val"), Tensor):
            shape = list(node.meta["val"].shape)
            raise FuseError(
                f"bptt.fuse: {name_of(node)} makes one tensor of shape {shape} of all the "
                "sequences of a batch: sequences must not depend on each other"
            )
    B = BATCHES[0]
    own = example.of_batch(B)
    other = example.of_batch(B, seed=1)
    with quietly(), torch.no_grad():
        before = _values(graph, own)
        for group in _groups(B):
            kept = torch.tensor([b for b in range(B) if b not in group])
            for source in (other, None):
                after = _values(graph, _with_others(own, source, group))
                for node in rows:
                    _compare(node, before[node][kept], after[node][kept])


def _groups(n: int) -> list[list[int]]:
    """Return groups of n sequences: for any two, one group has the first and not the second.

    Each sequence is in three of six groups, no two in the same three: 20 sequences at most.
    """
    of_each = [*combinations(range(6), 3)][:n]
    return [[b for b, groups in enumerate(of_each) if g in groups] for g in range(6)]


def _check_slice(node: fx.Node) -> None:
    """Refuse ``x[:100]``, which is all sequences of the batches that are traced."""
    if node.target is torch.ops.aten.slice.Tensor:
        given: tuple[Any, ...] = node.args
        _, dim, begin, end, step = given + (0, None, None, 1)[len(given) - 1 :]
        size = node.meta["val"].shape[0]
        if dim == 0 and (begin or step != 1 or (end is not None and size < end < 2**62)):
            raise FuseError(
                f"bptt.fuse: {name_of(node)} takes the sequences from {begin} to {end} of a batch: "
                "a step must treat each sequence alike"
            )


def _with_others(example: Example, source: Example | None, group: list[int]) -> Example:
    """Replace the sequences of a group by those of another example, or by NaN."""
    found: list[list[Tensor]] = []
    for name in ("x", "state"):
        each = []
        for i, t in enumerate(getattr(example, name)):
            t = t.clone()
            if source is not None:
                t[group] = getattr(source, name)[i][group]
            elif t.is_floating_point():
                t[group] = float("nan")
            each.append(t)
        found.append(each)
    return Example(found[0], found[1], example.own)


def _values(graph: StepGraph, example: Example) -> dict[fx.Node, Any]:
    """Return the result of each operation."""
    given = iter([*example.x, *example.state, *example.own.values()])
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = getattr(graph.module, str(node.target))
        elif node.op == "call_function":
            target: Any = node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = target(*args, **kwargs)
    return values


def _compare(node: fx.Node, before: Tensor, after: Tensor) -> None:
    same = torch.equal(before, after)
    if not same and not torch.allclose(before, after, 1e-6, 1e-9, equal_nan=True):
        raise FuseError(
            f"bptt.fuse: {name_of(node)} gives another result for a sequence when another one of "
            "the batch changes: sequences must not depend on each other"
        )
