"""Synthetic tasks of long memory: the answer is further back than a short truncation reaches.

What is asked and how far back it lies is known exactly, and so is the loss of a model that
remembers nothing. Batches are drawn, never repeated: there is no set to learn by heart, and
the loss of the next batch is a test loss.

>>> import torch
>>> from bptt._src.data.tasks import make_task
>>> task = make_task("copy", lag=6, symbols=2)
>>> batch = task.batch(torch.Generator().manual_seed(0))
>>> batch.inputs.argmax(-1)[:, 0].tolist()  # 4 is the blank, 5 says: now
[0, 3, 4, 4, 4, 5, 4, 4]
>>> batch.targets[:, 0].tolist()
[4, 4, 4, 4, 4, 4, 0, 3]
>>> task.steps, task.lag, round(task.baseline, 3)
(8, 6, 0.347)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import repeat
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from bptt._src.data.readers import IGNORED
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
        _at_least("batch_size", self.batch_size, 1)
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


@dataclass(frozen=True, kw_only=True)
class _Copying(Task):
    """The alphabet of the two copy tasks: symbols from 0, then the blank, then the delimiter."""

    alphabet: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("alphabet", self.alphabet, 2)

    @property
    def blank(self) -> int:
        return self.alphabet

    @property
    def delimiter(self) -> int:
        return self.alphabet + 1

    @property
    def inputs(self) -> int:
        return self.alphabet + 2

    def _remembered(self, targets: Tensor) -> Bool[Tensor, "time batch"]:
        return (targets >= 0) & (targets < self.alphabet)


@dataclass(frozen=True, kw_only=True)
class Copy(_Copying):
    """Remember some symbols over a gap, then say them in order.

    The inputs are the symbols, independent and uniform; blanks; at step lag - 1 the delimiter;
    and blanks. What is asked is a blank at each step before ``lag``, then the symbols.
    M. Arjovsky, A. Shah and Y. Bengio, "Unitary evolution recurrent neural networks" (2016),
    arXiv:1511.06464, after S. Hochreiter and J. Schmidhuber, "Long short-term memory" (1997).
    Their task with the gap T is ``Copy(symbols=10, alphabet=8, lag=T + 10)``; this one is smaller,
    so that it is learnt in a minute.

    Args:
        lag: steps from a symbol to its repetition, more than ``symbols``.
        symbols: how many are to be remembered, S.
        alphabet: how many there are to choose from, A.
        masked: whether only the last S steps are asked; otherwise the blanks are, too, as in
            the paper, and the baseline is S ln A / (lag + S) instead of ln A.
        batch_size: sequences in a batch, B.
        seed: of the batches that iteration gives.

    Raises:
        ConfigError: an option is out of its range.
    """

    lag: int = 20
    symbols: int = 3
    masked: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("symbols", self.symbols, 1)
        _at_least("lag", self.lag, 1)
        if self.lag <= self.symbols:
            raise ConfigError(
                f"lag must be more than symbols, {self.symbols}: what is still being read cannot "
                f"be asked for; got {self.lag}"
            )

    @property
    def steps(self) -> int:
        return self.lag + self.symbols

    @property
    def outputs(self) -> int:
        return self.alphabet + 1  # the delimiter is never asked

    @property
    def baseline(self) -> float:
        asked = self.symbols if self.masked else self.steps
        return self.symbols * math.log(self.alphabet) / asked

    def batch(self, generator: torch.Generator) -> TaskBatch:
        """Draw a batch of sequences; see :meth:`Task.batch`."""
        shape = (self.symbols, self.batch_size)
        symbols = torch.randint(self.alphabet, shape, generator=generator)  # [S, B]
        inputs = torch.full((self.steps, self.batch_size), self.blank)
        inputs[: self.symbols] = symbols
        inputs[self.lag - 1] = self.delimiter
        targets = torch.full_like(inputs, IGNORED if self.masked else self.blank)
        targets[self.lag :] = symbols
        return TaskBatch(_one_hot(inputs, self.inputs), targets, fresh=True)


@dataclass(frozen=True, kw_only=True)
class CopyStream(_Copying):
    """Copy without end: a delimiter and symbols, then the same again while blanks come in.

    Each column is an endless stream of copies. A copy of length m, uniform from ``shortest`` to
    ``longest``, takes 2m steps: the inputs are the delimiter, m - 1 symbols and m blanks, the
    targets m blanks and then these m inputs. Everything is asked. A stream begins somewhere
    within the first copies, so that the columns are not in step. With several lengths, how long a
    copy is can be told only from where it begins, up to 2m - 1 steps back.
    C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to
    control gradient bias" (2019), arXiv:1905.07473; their "fixed" task is this one with its
    defaults, their "variable" one has ``shortest=5``. They train on one window of 4,000 steps,
    again and again, and report exp(loss) on one of 1,000.

    Iteration and :meth:`batches` give windows of ``steps``, only the first of them fresh. The
    streams are the same whatever the length of the windows.

    Args:
        shortest: the least m.
        longest: the greatest m, which is the lag.
        steps: the length of a window, T.
        alphabet: how many symbols there are to choose from, A.
        batch_size: streams, B.
        seed: of the streams that iteration gives.

    Raises:
        ConfigError: an option is out of its range.

    >>> from itertools import islice
    >>> task = CopyStream(shortest=4, longest=4, steps=16, batch_size=1)
    >>> window, after = islice(task, 2)
    >>> window.inputs.argmax(-1)[:, 0].tolist()
    [1, 1, 4, 4, 4, 4, 5, 1, 2, 3, 4, 4, 4, 4, 5, 0]
    >>> window.targets[:, 0].tolist()
    [4, 4, 5, 0, 1, 1, 4, 4, 4, 4, 5, 1, 2, 3, 4, 4]
    >>> window.fresh, after.fresh
    (True, False)
    """

    shortest: int = 10
    longest: int = 10
    steps: int = 20
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("steps", self.steps, 1)
        _at_least("shortest", self.shortest, 2)
        if self.longest < self.shortest:
            raise ConfigError(
                f"{spelled('longest')} must be at least {spelled('shortest')}, {self.shortest}, "
                f"got {self.longest}"
            )

    @property
    def outputs(self) -> int:
        return self.alphabet + 2

    @property
    def lag(self) -> int:
        return self.longest

    @property
    def baseline(self) -> float:
        mean = (self.shortest + self.longest) / 2
        return (mean - 1) / (2 * mean) * math.log(self.alphabet)

    def batch(self, generator: torch.Generator) -> TaskBatch:
        """Draw the first window of new streams; see :meth:`Task.batch`."""
        return next(self.batches(generator))

    def batches(self, generator: torch.Generator) -> Iterator[TaskBatch]:
        """Draw new streams and go along them, a window at a time, without end.

        Args:
            generator: what everything random is drawn from, at the first window.
        """
        # A generator for each: a stream does not depend on how far the others have got.
        seeds = torch.randint(2**62, (self.batch_size,), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        ahead = [self._begin(g) for g in generators]
        fresh = True
        while True:
            for b, g in enumerate(generators):
                while ahead[b].shape[1] < self.steps:
                    ahead[b] = torch.cat([ahead[b], self._copy(g)], 1)
            inputs, targets = torch.stack([a[:, : self.steps] for a in ahead], 2)  # [T, B] each
            ahead = [a[:, self.steps :] for a in ahead]
            yield TaskBatch(_one_hot(inputs, self.inputs), targets, fresh)
            fresh = False

    def _begin(self, generator: torch.Generator) -> Int64[Tensor, "2 steps"]:
        """A stream's first copies, less a random number of steps."""
        skipped = int(torch.randint(2 * self.longest, (), generator=generator))
        copies = torch.empty(2, 0, dtype=torch.int64)
        while copies.shape[1] <= skipped:
            copies = torch.cat([copies, self._copy(generator)], 1)
        return copies[:, skipped:]

    def _copy(self, generator: torch.Generator) -> Int64[Tensor, "2 steps"]:
        """The inputs and the targets of one copy."""
        m = int(torch.randint(self.shortest, self.longest + 1, (), generator=generator))
        copy = torch.full((2, 2 * m), self.blank)
        copy[0, 0] = self.delimiter
        copy[0, 1:m] = torch.randint(self.alphabet, (m - 1,), generator=generator)
        copy[1, m:] = copy[0, :m]
        return copy


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
        _at_least("length", self.length, 4)

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
        _at_least("length", self.length, 10)
        _at_least("spread", self.spread, 0)

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
        return TaskBatch(_one_hot(ids, 8) * within.unsqueeze(2), targets, fresh=True)


TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {
        "copy": Copy,
        "copy-stream": CopyStream,
        "adding": Adding,
        "temporal-order": TemporalOrder,
    }
)
"""The tasks by name."""


def make_task(name: str, **options: Any) -> Task:
    """Make a task by its name.

    Args:
        name: one of :data:`TASKS`.
        options: the task's own; what is left out keeps its default.

    Returns:
        The task.

    Raises:
        ConfigError: there is no such task, it has no such option, or one is out of its range.

    >>> make_task("adding", length=100).lag
    99
    """
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    known = [field.name for field in fields(TASKS[name])]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"the task {name} has no option {spelled(option)}; it has "
                + ", ".join(map(spelled, known))
            )
    return TASKS[name](**options)


def _one_hot(ids: Int64[Tensor, "time batch"], size: int) -> Float[Tensor, "time batch size"]:
    return F.one_hot(ids, size).float()


def _at_least(name: str, given: int, least: int) -> None:
    if given < least:
        raise ConfigError(f"{spelled(name)} must be at least {least}, got {given}")
    if given > MOST:
        raise ConfigError(f"{spelled(name)} must be at most {MOST}, got {given}")
