"""Copy tasks: symbols to be repeated some steps later."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from bptt._src.data.readers import IGNORED
from bptt._src.data.task import Task, TaskBatch, at_least, one_hot
from bptt.errors import ConfigError, spelled


@dataclass(frozen=True, kw_only=True)
class _Copying(Task):
    """The alphabet of the two copy tasks: symbols from 0, then the blank, then the delimiter."""

    alphabet: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("alphabet", self.alphabet, 2)

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
        at_least("symbols", self.symbols, 1)
        at_least("lag", self.lag, 1)
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
        return TaskBatch(one_hot(inputs, self.inputs), targets, fresh=True)


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
        at_least("steps", self.steps, 1)
        at_least("shortest", self.shortest, 2)
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
            yield TaskBatch(one_hot(inputs, self.inputs), targets, fresh)
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
