"""The temporal order problem: which two symbols came, and in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from bptt._src.data.readers import IGNORED
from bptt._src.data.task import Task, TaskBatch, at_least, one_hot


@dataclass(frozen=True, kw_only=True)
class TemporalOrder(Task):
    """Recall which two symbols came, and in which order.

    A sequence begins with E and ends with B; in between are a, b, c and d at random, but X or Y
    at one random step of the second tenth of the length and at one of the sixth tenth. Which of
    XX, XY, YX and YY it was is asked at the end: classes 0 to 3. The inputs are E, B, a, b, c, d,
    X, Y, in this order. S. Hochreiter and J. Schmidhuber, "Long short-term memory" (1997),
    experiment 6a, which is ``TemporalOrder(length=100, spread=10)``; with other lengths it is a
    task of J. Martens and I. Sutskever, "Learning recurrent neural networks with Hessian-free
    optimization" (2011), and of R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of
    training recurrent neural networks" (2013), arXiv:1211.5063.

    Args:
        length: the length of a sequence, B and E included; at least 10.
        spread: up to so many steps more, uniformly, before the end; what is behind the end is
            zeros, and not asked. With 0 the end is always at the same step.
        batch_size: sequences in a batch, B.
        seed: of the batches that iteration gives.

    Raises:
        ConfigError: an option is out of its range.
    """

    length: int = 20
    spread: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("length", self.length, 10)
        at_least("spread", self.spread, 0)

    @property
    def steps(self) -> int:
        return self.length + self.spread

    @property
    def inputs(self) -> int:
        return 8

    @property
    def outputs(self) -> int:
        return 4

    @property
    def lag(self) -> int:
        return self.steps - 1 - self.length // 10

    @property
    def baseline(self) -> float:
        return math.log(4)

    def batch(self, generator: torch.Generator) -> TaskBatch:
        """Draw a batch of sequences; see :meth:`Task.batch`."""
        T, B, tenth = self.steps, self.batch_size, self.length // 10

        def below(bound: int) -> Int64[Tensor, " batch"]:
            return torch.randint(bound, (B,), generator=generator)

        first, second = below(2), below(2)  # X or Y
        columns, ids = torch.arange(B), torch.randint(2, 6, (T, B), generator=generator)
        ids[0] = 0
        ids[tenth + below(tenth), columns] = 6 + first
        ids[5 * tenth + below(tenth), columns] = 6 + second
        end = self.length - 1 + below(self.spread + 1)
        ids[end, columns] = 1
        within = torch.arange(T).unsqueeze(1) <= end  # [T, B]
        targets = torch.full((T, B), IGNORED)
        targets[end, columns] = 2 * first + second
        return TaskBatch(one_hot(ids, 8) * within.unsqueeze(2), targets, fresh=True)
