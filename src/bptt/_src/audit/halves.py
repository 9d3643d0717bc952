"""Which sequences' gradients arrive at a place: asked for by halves of the batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Target = TypeVar("Target", bound=Hashable)


def alone(
    ask: Callable[[Tensor], Mapping[Target, Tensor]], places: Mapping[Target, list[int]], batch: int
) -> Iterator[tuple[Target, int, int, Tensor]]:
    """Find what arrives at places from each sequence alone.

    A place that one sequence reaches is reached in just those halves of the batch that this one is
    in: the numbers with a binary digit 0, or 1. Where several reach a place, each is asked for.

    Args:
        ask: sends the vectors of some sequences, bool [batch], and returns what arrives at each
            target, [places, n].
        places: those of interest, for each target.
        batch: the number of sequences.

    Yields:
        The target, the sequence, the place and what arrives there.
    """
    rows = torch.arange(batch)
    digits = range(max(1, (batch - 1).bit_length()))
    answers = [[ask((rows >> k) % 2 == digit) for digit in (0, 1)] for k in digits]
    shared = {target: list(some) for target, some in places.items()}
    for target, some in shared.items():
        arrives = [[_arrives(answer, target) for answer in pair] for pair in answers]
        for place in list(some):
            zero, one = zip(*((a[place], b[place]) for a, b in arrives), strict=True)
            if all(a != b for a, b in zip(zero, one, strict=True)):
                row = sum(digit << k for k, digit in enumerate(one))
                yield target, row, place, answers[0][row % 2][target][place]
                some.remove(place)
    for row in range(batch) if any(shared.values()) else ():
        answer = ask(rows == row)
        for target, some in shared.items():
            arrived = _arrives(answer, target)
            for place in some:
                if arrived[place]:
                    yield target, row, place, answer[target][place]


def _arrives(answer: Mapping[Target, Tensor], target: Target) -> defaultdict[int, bool]:
    there: defaultdict[int, bool] = defaultdict(bool)
    if target in answer:
        there.update(enumerate((answer[target] != 0).any(1).tolist()))
    return there
