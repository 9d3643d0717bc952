"""A text as streams for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.data.readers import check_share, window
from bptt._src.data.tokens import Tokens
from bptt._src.ranks import ranks_of
from bptt.errors import ConfigError, CorpusError


def streams(
    tokens: Tokens | Tensor | NDArray[Any],
    *,
    batch: int,
    steps: int,
    rank: int | None = None,
    world_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read a text once, as parallel streams, in windows of tokens and of those that follow them.

    The text is divided into ``batch`` contiguous parts of equal length, the streams. Window after
    window goes along all of them, so a state can be carried from each to the next. The last one
    may be shorter. Fewer than ``batch`` tokens at the end of the text are left over; nothing
    is shuffled. (:class:`Streams` reads epoch after epoch, each from another token on, and knows
    its position.)

    Where several processes share the streams, each reads its own, as :class:`bptt.Stream` takes it
    for granted: rank r of N those of the numbers r, r + N, r + 2N...

    Args:
        tokens: the ids of the tokens: integers [tokens], or what :func:`encode_corpus` makes.
        batch: the number of streams, B, of all processes together.
        steps: the number of tokens in a window, T.
        rank: the number of this process; by default that of torch.distributed, if it is
            initialised.
        world_size: the number of processes that share the streams; by default likewise.

    Returns:
        An iterator of pairs ``(inputs, targets)``, each int64 [T, b], where b is the number of
        this process's streams and the target of a token is the one after it.

    Raises:
        ConfigError: an argument is out of range, or the ids are no row of integers.
        CorpusError: the text is too short.

    >>> import torch, bptt
    >>> for x, y in bptt.data.streams(torch.arange(21), batch=4, steps=3):
    ...     print(x.T.tolist())
    [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16, 17]]
    [[3, 4], [8, 9], [13, 14], [18, 19]]
    >>> y.T.tolist()
    [[4, 5], [9, 10], [14, 15], [19, 20]]

    The second of three processes:

    >>> x, y = next(bptt.data.streams(torch.arange(21), batch=4, steps=3, rank=1, world_size=3))
    >>> x.T.tolist()
    [[5, 6, 7]]
    """
    ids = tokens.ids if isinstance(tokens, Tokens) else _row(tokens)
    for name, given in (("batch", batch), ("steps", steps)):
        if given < 1:
            raise ConfigError(f"streams: {name} must be at least 1, got {given}")
    ranks = ranks_of(rank, world_size)
    check_share(batch, ranks, "batch")
    length = (len(ids) - 1) // batch
    if length < 1:
        raise CorpusError(
            f"streams: {len(ids):,} tokens are too few for {batch} streams: reduce batch or give "
            "more text"
        )
    starts = [stream * length for stream in range(batch)[ranks.own()]]
    return (
        window(ids, [start + first for start in starts], min(steps, length - first))
        for first in range(0, length, steps)
    )


def _row(tokens: Tensor | NDArray[Any]) -> NDArray[Any]:
    ids = np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(
            "streams: expected the ids of tokens, integers of shape [tokens], got "
            f"{ids.dtype} of {list(ids.shape)}"
        )
    return ids
