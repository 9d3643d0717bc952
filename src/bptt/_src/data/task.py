"""What the synthetic tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from bptt._src.data.readers import IGNORED
from bptt._src.ranks import ranks_of
from bptt.errors import ConfigError, spelled

MOST = 10**6  # of what is counted: steps, sequences, symbols


@dataclass(frozen=True)
class TaskBatch:
    """Sequences and what is asked of them.

    Attributes:
        inputs: float [T, B, I], one-hot where they are symbols.
        targets: [T, B], int64 classes, or float where a number is asked;
            :data:`~bptt.data.IGNORED` at the steps where nothing is asked.
        fresh: Whether every sequence starts here, from a zero state; otherwise each goes on
            where the same column of the batch before ended.
    """

    inputs: Float[Tensor, "time batch input"]
    targets: Int64[Tensor, "time batch"] | Float[Tensor, "time batch"]
    fresh: bool

    def of_process(self, rank: int | None = None, world_size: int | None = None) -> TaskBatch:
        """Return the sequences that one of several processes has: rank, rank + world_size...

        A task draws the same whole batches in every process. All sequences of a batch are
        asked equally much, so a process's mean loss counts as much as its share of them.

        Args:
            rank: the number of the process; by default that of torch.distributed, if it is
                initialised.
            world_size: the number of processes that share the batch; by default likewise.

        Raises:
            ConfigError: one is given without the other, or they do not fit each other.

        >>> import bptt
        >>> batch = next(iter(bptt.data.make_task("copy", batch_size=5)))
        >>> [batch.of_process(rank, 2).inputs.shape[1] for rank in range(2)]
        [3, 2]
        """
        own = ranks_of(rank, world_size).own()
        return replace(self, inputs=self.inputs[:, own], targets=self.targets[:, own])


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the tasks have in common.

    Args:
        batch_size: sequences in a batch, B.
        seed: of the batches that iteration gives.

    Attributes:
        steps: the length of a batch, T.
        inputs: the size of an input, I.
        outputs: the size of an answer, O.
        lag: the longest dependency, in steps: some answer at a step t is about the input at
            t - lag, and none about an earlier one. A gradient must cross lag boundaries between
            steps to reach it.
        baseline: the expected loss of the best model that knows where in the sequence it is
            and nothing of what came before.
        target: a loss at which the task counts as solved, a tenth of the baseline.

    Raises:
        ConfigError: an option is out of its range.
    """

    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(
                f"{spelled('seed')} must be at least 0 and below 2**63, got {self.seed}"
            )

    @property
    @abstractmethod
    def steps(self) -> int: ...

    @property
    @abstractmethod
    def inputs(self) -> int: ...

    @property
    @abstractmethod
    def outputs(self) -> int: ...

    @property
    @abstractmethod
    def lag(self) -> int: ...

    @property
    @abstractmethod
    def baseline(self) -> float: ...

    @property
    def target(self) -> float:
        return self.baseline / 10

    @abstractmethod
    def batch(self, generator: torch.Generator) -> TaskBatch:
        """Draw a batch of sequences that start here.

        Args:
            generator: what everything random is drawn from.

        Returns:
            The batch, with ``fresh``.
        """

    def batches(self, generator: torch.Generator) -> Iterator[TaskBatch]:
        """Draw batches without end, each of new sequences.

        Args:
            generator: what everything random is drawn from.
        """
        return map(self.batch, repeat(generator))

    def __iter__(self) -> Iterator[TaskBatch]:
        """The batches of this task's seed, without end, the same each time."""
        return self.batches(torch.Generator().manual_seed(self.seed))

    def loss(
        self, outputs: Float[Tensor, "time batch output"], batch: TaskBatch
    ) -> Float[Tensor, ""]:
        """The mean loss over what is asked: cross-entropy in nats.

        Args:
            outputs: the model's answers, [T, B, O], as logits.
            batch: what they answer; pieces of a batch and of its answers will do.

        Returns:
            The loss; 0 where nothing is asked.
        """
        asked = int((batch.targets != IGNORED).sum())
        logits, targets = outputs.flatten(0, 1), batch.targets.flatten()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / max(asked, 1)

    def accuracy(self, outputs: Float[Tensor, "time batch output"], batch: TaskBatch) -> float:
        """The share of right answers, among those that take memory.

        Args:
            outputs: the model's answers, [T, B, O].
            batch: what they answer.

        Returns:
            A share of 0 to 1; NaN where nothing is asked.
        """
        right, remembered = self._right(outputs, batch.targets), self._remembered(batch.targets)
        return float(right[remembered].double().mean())

    def _right(self, outputs: Tensor, targets: Tensor) -> Bool[Tensor, "time batch"]:
        return outputs.argmax(-1) == targets

    def _remembered(self, targets: Tensor) -> Bool[Tensor, "time batch"]:
        return targets != IGNORED


def one_hot(ids: Int64[Tensor, "time batch"], size: int) -> Float[Tensor, "time batch size"]:
    """Write symbols as vectors with a single 1."""
    return F.one_hot(ids, size).float()


def at_least(name: str, given: int, least: int) -> None:
    """Refuse a number that is too small, or larger than :data:`MOST`."""
    if given < least:
        raise ConfigError(f"{spelled(name)} must be at least {least}, got {given}")
    if given > MOST:
        raise ConfigError(f"{spelled(name)} must be at most {MOST}, got {given}")
