"""The adding problem: the sum of two marked numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bptt._src.data.readers import IGNORED
from bptt._src.data.task import Task, TaskBatch, at_least
from bptt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Adding(Task):
    """Add the two numbers that are marked.

    An input is a number, uniform in [0, 1), and a mark, 1 at two steps and 0 elsewhere; the sum of
    the two marked numbers is asked at the last step. The loss is the mean squared error. The
    baseline always answers 1, the mean: 1/6, the sum's variance.

    Where the marks are decides what a truncation does. ``"early"``, as in S. Hochreiter and
    J. Schmidhuber, "Long short-term memory" (1997), experiment 4: one of the first ten steps, and
    another of the first half, so that every answer is at least half a sequence away. (Theirs are
    numbers in [-1, 1], lengths from T to 1.1 T, and -1 for a mark at both ends.)
    ``"halves"``, as in M. Arjovsky, A. Shah and Y. Bengio, "Unitary evolution recurrent neural
    networks" (2016), arXiv:1511.06464: one step of the first half and one of the second. The
    last mark is then often near the end; what is learnt there serves at any distance, and a
    gradient cut after a few steps learns the whole task.

    An answer counts as right within 0.08. That is the original's 0.04, whose answers are sums
    scaled to [0, 1].

    Args:
        length: the length of a sequence, T; published are 100 to 1,000.
        marks: ``"early"`` or ``"halves"``.
        batch_size: sequences in a batch, B.
        seed: of the batches that iteration gives.

    Raises:
        ConfigError: an option is out of its range.
    """

    length: int = 20
    marks: Literal["early", "halves"] = "early"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.marks not in ("early", "halves"):
            raise ConfigError(f"marks must be early or halves, got {self.marks!r}")
        at_least("length", self.length, 4)

    @property
    def steps(self) -> int:
        return self.length

    @property
    def inputs(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 1

    @property
    def lag(self) -> int:
        return self.length - 1

    @property
    def baseline(self) -> float:
        return 1 / 6

    def batch(self, generator: torch.Generator) -> TaskBatch:
        """Draw a batch of sequences; see :meth:`Task.batch`."""
        T, B = self.length, self.batch_size
        numbers = torch.rand(T, B, generator=generator)
        marked = self._marked(generator)
        marks = torch.zeros(T, B).scatter_(0, marked, 1)
        targets = torch.full((T, B), float(IGNORED))
        targets[-1] = numbers.gather(0, marked).sum(0)
        return TaskBatch(torch.stack([numbers, marks], 2), targets, fresh=True)

    def _marked(self, generator: torch.Generator) -> Int64[Tensor, "2 batch"]:
        """The steps with a mark."""

        def below(bound: int) -> Int64[Tensor, " batch"]:
            return torch.randint(bound, (self.batch_size,), generator=generator)

        half = self.length // 2
        if self.marks == "halves":
            return torch.stack([below(half), half + below(self.length - half)])
        first, second = below(min(10, half)), below(half - 1)
        return torch.stack([first, second + (second >= first)])  # of those still unmarked

    def loss(
        self, outputs: Float[Tensor, "time batch output"], batch: TaskBatch
    ) -> Float[Tensor, ""]:
        """The mean squared error of what is asked; see :meth:`Task.loss`.

        Args:
            outputs: the model's answers, [T, B, 1].
            batch: what they answer; pieces of a batch and of its answers will do.

        Returns:
            The loss; 0 where nothing is asked.
        """
        asked = batch.targets != IGNORED
        errors = outputs.squeeze(2)[asked] - batch.targets[asked]
        return errors.square().sum() / max(len(errors), 1)

    def _right(self, outputs: Tensor, targets: Tensor) -> Bool[Tensor, "time batch"]:
        return (outputs.squeeze(2) - targets).abs() < 0.08
