"""Readers of batches for training: of contiguous streams, or of whole sentences.

Everything random is a function of the seed and the epoch alone, so a position is two integers
and resuming is exact. Where several processes share the batches, each reads its own sequences of
every batch; the position is that of all of them, so that any number of processes can resume.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.data.tokens import Tokens
from bptt._src.ranks import ALONE, Ranks, ranks_of
from bptt.errors import BpttWarning, CheckpointError, ConfigError, CorpusError, spelled

IGNORED = -100
"""The target where there is none, as in ``torch.nn.functional.cross_entropy``."""

MOST, MOST_OF_FEW = 1000, 20_000
"""Limits on the tokens in a batch, padding included: per sequence, and in total."""

_POOL = 256  # batches that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """One step of training.

    Attributes:
        inputs: int64 [T, B].
        targets: int64 [T, B], the token after each input; :data:`IGNORED` where there is none.
        fresh: Whether every sequence starts here, from a zero state; otherwise each continues
            from the end of the same column in the previous batch.
        tokens: The number of targets that count.
        total: The number of targets that count on all processes together, ``tokens`` in one. The
            batch's loss is the sum of the tokens' losses over all processes, divided by it.
        size: The number of sequences on all processes together, B in one.
    """

    inputs: Tensor
    targets: Tensor
    fresh: bool
    tokens: int
    total: int
    size: int


def check_share(batch: int, ranks: Ranks, name: str = "batch_size") -> None:
    """Refuse a batch of which some processes would have nothing.

    Raises:
        ConfigError: there are fewer sequences than processes.
    """
    if batch < ranks.world_size:
        raise ConfigError(
            f"{spelled(name, batch)} leaves {ranks.world_size - batch} of the {ranks.world_size} "
            "processes without a sequence: raise it, or start fewer"
        )


def window(ids: NDArray[Any], starts: list[int], steps: int) -> tuple[Tensor, Tensor]:
    """Return the tokens from these places on, and those that follow each, int64 [T, B]."""
    columns = np.empty((steps + 1, len(starts)), np.int64)
    for column, start in enumerate(starts):
        columns[:, column] = ids[start : start + steps + 1]
    tokens = torch.from_numpy(columns)
    return tokens[:-1], tokens[1:]


class _Reader:
    """The position in an endless succession of epochs."""

    _kind: str

    def __init__(self, tokens: Tokens, batch_size: int, seed: int, ranks: Ranks) -> None:
        if batch_size < 1:
            raise ConfigError(f"{spelled('batch_size')} must be at least 1, got {batch_size}")
        check_share(batch_size, ranks)
        self.tokens, self.batch_size, self.seed, self.ranks = tokens, batch_size, seed, ranks
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Number of batches in the current epoch, those already yielded included."""
        raise NotImplementedError

    def _batch(self, position: int, ranks: Ranks) -> Batch:
        raise NotImplementedError

    def whole(self) -> Batch:
        """Read the batch that was yielded last, with the sequences of all processes."""
        return self._batch(self.position - 1, ALONE)

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of this epoch; after the last one the next epoch begins."""
        while self.position < len(self):
            batch = self._batch(self.position, self.ranks)
            self.position += 1  # before the yield, so that a state saved later resumes after it
            yield batch
        self.epoch += 1
        self.position = 0

    def state_dict(self) -> dict[str, int | str]:
        """The position: after loading it, the next batch is the one after the last yielded.

        If taken while the last batch of an epoch is in use, the epoch is not over yet: after
        loading, iteration ends at once and the next epoch begins.
        """
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go to a position saved by :meth:`state_dict`.

        Args:
            state: The saved position, from a reader of the same tokens with the same arguments.

        Raises:
            CheckpointError: If it belongs to another reader, or is damaged.
        """
        for key, expected in self._identity().items():
            if state.get(key) != expected:
                raise CheckpointError(
                    f"the saved position has {key}={state.get(key)!r}, this reader {expected!r}: "
                    "resume with the same text and settings"
                )
        epoch, position = state.get("epoch"), state.get("position")
        valid = isinstance(epoch, int) and isinstance(position, int)
        if not valid or epoch < 0 or position < 0:  # type: ignore[operator]
            raise CheckpointError(
                f"the saved position is damaged, epoch={epoch!r} position={position!r}: "
                "resume from another checkpoint"
            )
        self.epoch, self.position = int(epoch), int(position)  # type: ignore[arg-type]

    def _identity(self) -> dict[str, int | str]:
        return {
            "reader": self._kind,
            "tokens": len(self.tokens.ids),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _generator(self) -> torch.Generator:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]) >> 1)


class Streams(_Reader):
    """A text as ``batch_size`` streams, cut into windows of ``steps`` tokens.

    ``"sequential"``: stream b is the b-th of equal contiguous parts of the text, and each window
    continues the one before. The last window of an epoch may be shorter. ``"random"``: windows
    that do not overlap, each on its own, in random order; the last batch may be smaller.

    Either way each epoch skips a random number of tokens, less than ``steps``, at the beginning,
    unless ``epoch_start`` is ``"first"``, so that windows do not always end at the same places; the
    number of batches in an epoch can therefore differ by one. Tokens at the end of the text that do
    not fill a row of the batch (sequential) or a window (random) are skipped too.

    Attributes:
        epoch: The current epoch, from 0.
        position: The number of its batches that have been yielded.
    """

    _kind = "streams"

    def __init__(
        self,
        tokens: Tokens,
        *,
        batch_size: int,
        steps: int,
        sampling: str = "sequential",
        epoch_start: str = "random",
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Start before the first batch of epoch 0.

        Args:
            tokens: The text; boundaries of sequences are ignored.
            batch_size: Number of streams, B, of all processes together.
            steps: Tokens in a window, T.
            sampling: ``"sequential"`` or ``"random"``.
            epoch_start: ``"random"``: each epoch skips some tokens at its beginning; ``"first"``:
                it begins at the first.
            seed: Seed of the offsets and the order.
            rank: The number of this process; it reads the streams ``rank``, ``rank + world_size``
                and so on. By default that of torch.distributed, if it is initialised.
            world_size: The number of processes that share the streams; by default likewise.

        Raises:
            ConfigError: If an argument is out of range.
            CorpusError: If the text is too short.
        """
        super().__init__(tokens, batch_size, seed, ranks_of(rank, world_size))
        if steps < 1:
            raise ConfigError(f"{spelled('steps')} must be at least 1, got {steps}")
        if sampling not in ("sequential", "random"):
            raise ConfigError(
                f"{spelled('sampling')} must be sequential or random, got {sampling!r}"
            )
        if epoch_start not in ("random", "first"):
            raise ConfigError(f"epoch_start must be random or first, got {epoch_start!r}")
        self.steps, self.sampling, self.epoch_start = steps, sampling, epoch_start
        pairs = len(tokens.ids) - 1  # pairs of an input and its target
        if sampling == "sequential" and pairs < batch_size:
            raise CorpusError(
                f"{len(tokens.ids):,} tokens are too few for {batch_size} streams: "
                f"reduce {spelled('batch_size')} or give more text"
            )
        if sampling == "random" and pairs < steps:
            raise CorpusError(
                f"{len(tokens.ids):,} tokens are too few for a window of {steps} steps: "
                f"reduce {spelled('steps')} or give more text"
            )
        # At most as many are skipped as leave each stream a token, or the batch a window.
        least = batch_size if sampling == "sequential" else steps
        self._offsets = 1 if epoch_start == "first" else min(steps, pairs - least + 1)
        self._drawn: tuple[int, int, Tensor] | None = None

    def __len__(self) -> int:
        """Number of batches in the current epoch, those already yielded included."""
        offset, order = self._draw()
        if self.sampling == "random":
            return -(-len(order) // self.batch_size)
        return -(-self._length(offset) // self.steps)

    def _length(self, offset: int) -> int:
        return (len(self.tokens.ids) - 1 - offset) // self.batch_size

    def _draw(self) -> tuple[int, Tensor]:
        """The offset of this epoch, and the order of its windows if it is random."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = self._generator()
            offset = int(torch.randint(self._offsets, (), generator=generator))
            windows = (len(self.tokens.ids) - 1 - offset) // self.steps
            order = torch.empty(0, dtype=torch.int64)
            if self.sampling == "random":
                order = torch.randperm(windows, generator=generator)
            self._drawn = (self.epoch, offset, order)
        return self._drawn[1:]

    def _batch(self, position: int, ranks: Ranks) -> Batch:
        offset, order = self._draw()
        steps, size = self.steps, self.batch_size
        if self.sampling == "random":
            chosen = order[position * size : (position + 1) * size]
            starts = (offset + chosen * steps).tolist()
        else:
            length = self._length(offset)
            starts = [offset + b * length + position * steps for b in range(size)]
            steps = min(steps, length - position * steps)
        own = starts[ranks.own()]
        fresh = self.sampling == "random" or position == 0
        counts = steps * len(own), steps * len(starts), len(starts)
        return Batch(*window(self.tokens.ids, own, steps), fresh, *counts)

    def _identity(self) -> dict[str, int | str]:
        found = {**super()._identity(), "steps": self.steps, "sampling": self.sampling}
        return found if self.epoch_start == "random" else {**found, "epoch_start": "first"}


@dataclass(frozen=True)
class _Part:
    """Steps of some sequences: whole ones, or a window of a single long one."""

    sequences: NDArray[np.int64]
    first: int = 0
    steps: int | None = None  # None: to the end


class Sentences(_Reader):
    """Whole sentences in batches of similar length, each sentence once in an epoch.

    Inputs are a sentence without its end token, targets without its start token. In each epoch the
    sentences are shuffled, those of a pool of 256 batches sorted by length to keep padding small,
    and the batches shuffled. The smallest batch has the remainder.

    Memory is bounded: a batch has at most 1,000 tokens for each sentence asked for, but never
    less than 20,000, padding included. With longer sentences, a batch has fewer of them. One
    that is longer still is alone in its batch, in windows of this size with the state carried from
    each to the next, and a warning counts such sentences.

    Attributes:
        epoch: The current epoch, from 0.
        position: The number of its batches that have been yielded.
    """

    _kind = "sentences"

    def __init__(
        self,
        tokens: Tokens,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Start before the first batch of epoch 0.

        Args:
            tokens: The sentences; tokens that were read as a stream have none.
            batch_size: The largest number of sentences in a batch, B, of all processes together.
            seed: Seed of the order.
            rank: The number of this process; it reads the sentences ``rank``, ``rank + world_size``
                and so on of each batch, padded to the batch's longest. By default that of
                torch.distributed, if it is initialised.
            world_size: The number of processes that share the batches; by default likewise.

        Raises:
            ConfigError: If the tokens are a stream, or the batch size is not positive.
        """
        super().__init__(tokens, batch_size, seed, ranks_of(rank, world_size))
        if tokens.offsets is None:
            raise ConfigError(
                "these tokens are one stream without sentences: read the text as sentences or "
                "lines, or use streams"
            )
        self._offsets = tokens.offsets
        self._count = len(tokens.offsets) - 1
        self._most = max(MOST_OF_FEW, MOST * batch_size)
        self._drawn: tuple[int, list[_Part]] | None = None
        if long := int(np.count_nonzero(np.diff(tokens.offsets) - 1 > self._most)):
            warnings.warn(
                f"{long:,} sequence{'s' * (long > 1)} of more than {self._most:,} tokens will be "
                f"read in windows of {self._most:,}: the state is carried from each to the next, "
                "the gradient is not; if the text is not one of sentences or lines, read it as a "
                f"stream, {spelled('reading', 'stream')}",
                BpttWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Number of batches in the current epoch, those already yielded included."""
        return len(self._draw())

    def _draw(self) -> list[_Part]:
        """The batches of this epoch."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator, size = self._generator(), self.batch_size
            shuffled = torch.randperm(self._count, generator=generator).numpy()
            batches: list[list[_Part]] = []
            for first in range(0, self._count, _POOL * size):
                pool = shuffled[first : first + _POOL * size]
                lengths = self._offsets[pool + 1] - self._offsets[pool] - 1
                order = np.argsort(lengths, kind="stable")
                batches += self._batches(pool[order], lengths[order])
            shuffle = torch.randperm(len(batches), generator=generator).tolist()
            self._drawn = (self.epoch, [part for i in shuffle for part in batches[i]])
        return self._drawn[1]

    def _batches(
        self, sequences: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[list[_Part]]:
        """Batches of sequences sorted by length; the windows of a long one together."""
        first = 0
        while first < len(sequences):
            end = min(first + self.batch_size, len(sequences))
            # The longest one, the last, determines the padding.
            while end - first > 1 and (end - first) * int(lengths[end - 1]) > self._most:
                end = first + max(1, min(end - first - 1, self._most // int(lengths[end - 1])))
            chosen, longest = sequences[first:end], int(lengths[end - 1])
            if longest <= self._most:
                yield [_Part(chosen)]
            else:
                yield [_Part(chosen, s, self._most) for s in range(0, longest, self._most)]
            first = end

    def _batch(self, position: int, ranks: Ranks) -> Batch:
        part = self._draw()[position]
        starts = self._offsets[part.sequences] + part.first
        ends = self._offsets[part.sequences + 1]
        if part.steps is not None:
            ends = np.minimum(ends, starts + part.steps + 1)
        longest, total, size = int((ends - starts).max()) - 1, _counted(starts, ends), len(starts)
        starts, ends = starts[ranks.own()], ends[ranks.own()]
        inputs = np.zeros((longest, len(starts)), np.int64)  # the padding's value does not matter
        targets = np.full((longest, len(starts)), IGNORED, np.int64)
        for column, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids: NDArray[Any] = self.tokens.ids[start:end]
            inputs[: len(ids) - 1, column] = ids[:-1]
            targets[: len(ids) - 1, column] = ids[1:]
        counts = _counted(starts, ends), total, size
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), part.first == 0, *counts)


def _counted(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
    """The number of targets between these places, of which the first token is none."""
    return int((ends - starts).sum()) - len(starts)
