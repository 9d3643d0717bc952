"""Dropout whose masks belong to the sequences, not to the batch that they are in.

A mask of :func:`torch.nn.functional.dropout` depends on the whole batch's shape. In a
:func:`numbered` batch, one number is drawn from torch's generator for each call, and each
sequence's mask from that and from the sequence's own number. So the masks are the same however a
batch is shared out over processes, as long as their generators are in step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_numbers: Sequence[int] | None = None
_generators: dict[torch.device, torch.Generator] = {}


@contextmanager
def numbered(numbers: Sequence[int] | None) -> Iterator[None]:
    """Give the sequences of a batch their numbers, in this process, for the block's duration.

    Args:
        numbers: one for each sequence, [B]; None: none, so that masks are torch's own.
    """
    global _numbers
    before, _numbers = _numbers, numbers
    try:
        yield
    finally:
        _numbers = before


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set elements to zero with probability p and divide the others by 1 - p.

    Args:
        x: any shape; in a :func:`numbered` batch [T, B, H], or its rows [T B, H].
        p: the probability.
        training: whether anything is dropped at all.
    """
    if _numbers is None or not training or p == 0:
        return nn.functional.dropout(x, p, training)
    key = int(torch.randint(1 << 62, (), device="cpu"))
    if not _numbers or p == 1:
        return x * 0
    generator = _generators.setdefault(x.device, torch.Generator(x.device))
    steps = x.view(-1, len(_numbers), x.shape[-1])
    mask = x.new_empty(len(_numbers), len(steps), x.shape[-1])
    for of_one, number in zip(mask, _numbers, strict=True):
        generator.manual_seed(_mixed(key, number))
        of_one.bernoulli_(1 - p, generator=generator)
    return (steps * mask.div_(1 - p).transpose(0, 1)).view_as(x)


def masks(like: Tensor, rows: tuple[int, ...], rates: Sequence[float], hidden: int) -> Tensor:
    """Draw masks of zoneout, [*rows, len(rates)·H]: 1 where a unit keeps its state, 0 elsewhere.

    Args:
        like: has their dtype and device.
        rows: (T, B), or (N,).
        rates: the probability of a 1 in each mask.
        hidden: the number of hidden units, H.
    """
    one = like.new_ones(*rows, hidden)
    return torch.cat([(dropout(one, p, True) == 0).to(one.dtype) for p in rates], dim=-1)


def _mixed(key: int, number: int) -> int:
    """A seed from both, by the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
