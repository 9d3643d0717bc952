"""Which sequences of a batch this process has, where several processes share it.

Sequence g lies on rank g modulo the number of ranks, as torch.utils.data.DistributedSampler deals
its samples out, so that rank r of N has the sequences r, r + N, r + 2N...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bptt.errors import ConfigError, spelled


class Ranks(NamedTuple):
    """A process among those that share a batch."""

    rank: int = 0
    world_size: int = 1

    def own(self) -> slice:
        """Return the indices of this process's sequences among all of the batch."""
        return slice(self.rank, None, self.world_size)

    def share(self, batch: int, rank: int | None = None) -> int:
        """Return how many sequences of a batch this process has, or another one.

        >>> [Ranks(r, 3).share(20) for r in range(3)]
        [7, 7, 6]
        """
        return len(range(self.rank if rank is None else rank, batch, self.world_size))


ALONE = Ranks()


def ranks_of(rank: int | None = None, world_size: int | None = None) -> Ranks:
    """Return the process that is meant: the given one, or this one of torch.distributed.

    Args:
        rank: the number of the process; None: that of torch.distributed, 0 if it is not
            initialised.
        world_size: the number of processes; None: that of torch.distributed, 1 if it is not
            initialised.

    Raises:
        ConfigError: one of them is given without the other, or they do not fit each other.
    """
    if rank is None and world_size is None:
        return _found()
    if rank is None or world_size is None:
        raise ConfigError(
            f"{spelled('rank')} and {spelled('world_size')} belong together: give both, got "
            f"{rank} and {world_size}, or neither, to take those of torch.distributed"
        )
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"{spelled('rank')} must be from 0 to {spelled('world_size')} - 1, got {rank} of "
            f"{world_size}"
        )
    return Ranks(rank, world_size)


def _found() -> Ranks:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


_shared: tuple[Ranks, int | None] | None = None


@contextmanager
def sharing(ranks: Ranks, batch: int | None = None) -> Iterator[None]:
    """Set whose batches the credits plan for, in this process, for the block's duration.

    Args:
        ranks: this process among those that share the batch.
        batch: the number of sequences of all of them; None: each has as many as this one.
    """
    global _shared
    before, _shared = _shared, (ranks, batch)
    try:
        yield
    finally:
        _shared = before


def whole_batch(batch: int) -> tuple[Ranks, int]:
    """Return this process, and the number of sequences of all that share its batch.

    Args:
        batch: the number of sequences of this process.
    """
    ranks, whole = (ranks_of(), None) if _shared is None else _shared
    return ranks, batch * ranks.world_size if whole is None else whole
