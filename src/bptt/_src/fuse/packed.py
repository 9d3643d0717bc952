"""A fused cell over sequences of several lengths."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.pytree import map_tensors, tensors_of


def run_packed(
    run: Callable[[Any, Any], tuple[Any, Any]], inputs: PackedSequence, state: Any
) -> tuple[Any, Any]:
    """Run over packed sequences, in pieces of consecutive steps that have the same sequences.

    Args:
        run: runs over sequences of one length, ``(inputs [T, B, ...], state) -> (outputs, state)``,
            from zeros if the state is None.
        inputs: the sequences.
        state: the initial state, each of its tensors [B, units], in the order of the sequences.

    Returns:
        The outputs, packed like the inputs, or a pytree of such; and the state of each sequence at
        its end.
    """
    data, sizes, order, back = inputs
    if state is not None and order is not None:  # run refuses a state of another size
        state = map_tensors(lambda s: s[order] if len(s) == len(order) else s, state)
    pieces, ended, begin = [], [], 0
    for size, steps in groupby(sizes.tolist()):
        T = len(list(steps))
        if begin:
            ended.append(map_tensors(itemgetter(slice(size, None)), state))
            state = map_tensors(itemgetter(slice(size)), state)
        x = data[begin : begin + T * size].unflatten(0, (T, size))
        y, state = run(x, state)
        pieces.append(map_tensors(lambda y: y.flatten(0, 1), y))
        begin += T * size
    outputs = _joined(pieces, lambda y: PackedSequence(y, sizes, order, back))
    final = _joined([state, *reversed(ended)], lambda s: s if back is None else s[back])
    return outputs, final


def _joined(pieces: list[Any], then: Callable[[Tensor], Any]) -> Any:
    rows = iter([torch.cat(each) for each in zip(*map(tensors_of, pieces), strict=True)])
    return map_tensors(lambda _: then(next(rows)), pieces[0])
