"""Credit and memory by sequence and step: in the order of calls, or as the labels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit.compose import Credits
from bptt._src.audit.held import memory
from bptt._src.audit.record import Matrix, Record

MOST = 4096


class Across(NamedTuple):
    """An entry between two sequences."""

    sequence: int
    t: int
    of: int
    """The other sequence."""
    s: int
    weight: float


@dataclass
class Numbering:
    """The number of the sequence and the step at each place, [N, B]; -1 where there is none."""

    sequence: NDArray[np.int64]
    step: NDArray[np.int64]
    episode: NDArray[np.int64] | None
    with_graph: NDArray[np.bool_]
    """[N]"""
    streams: list[int]
    """What the sequences are called."""
    start: int
    """What the first step is called."""

    @property
    def steps(self) -> int:
        return int(self.step.max()) + 1

    @property
    def sequences(self) -> int:
        return len(self.streams)


def numbering(record: Record) -> Numbering:
    """Number all places.

    Raises:
        ValueError: the labels' steps reach too far for a matrix.
    """
    N, B = record.steps, record.batch
    stream, step = np.full((N, B), -1), np.full((N, B), -1)
    episode = np.full((N, B), -1)
    with_graph = np.zeros(N, bool)
    has_labels = any(c.labels is not None for c in record.calls)
    has_episodes = any(c.episodes is not None for c in record.calls)
    for c in record.calls:
        rows = slice(c.first, c.first + c.steps)
        with_graph[rows] = c.with_graph
        is_there = np.arange(c.steps)[:, None] < np.array(c.lengths)
        of, at = np.arange(B)[: c.batch] + 0 * is_there, np.arange(N)[rows, None] + 0 * is_there
        if c.labels is not None:
            of, at = c.labels
            is_there = is_there & (of >= 0)
        stream[rows, : c.batch] = np.where(is_there, of, -1)
        step[rows, : c.batch] = np.where(is_there, at, -1)
        if c.episodes is not None:
            episode[rows, : c.batch] = np.where(is_there, c.episodes, -1)
    names = sorted(set(stream[stream >= 0].tolist()))
    sequence = np.where(stream >= 0, np.searchsorted(names, stream), -1)
    start = int(step[step >= 0].min()) if has_labels else 0
    step = np.where(step >= 0, step - start, -1)
    if step.max() >= MOST:
        raise ValueError(
            f"bptt.audit: the labels' steps reach from {start} to {start + step.max()}, and a "
            f"matrix of more than {MOST} is not made; number them from where recording begins, or "
            "record fewer by steps="
        )
    return Numbering(sequence, step, episode if has_episodes else None, with_graph, names, start)


@dataclass
class Matrices:
    """Weights by sequence, [Q, T, T], and the entries between sequences."""

    own: Matrix
    seen: Matrix
    """How often each step was met, [Q, T]."""
    across: list[Across]

    def mean(self) -> Matrix:
        """The mean over the sequences that have the step, [T, T]."""
        has = (self.seen > 0).astype(float)
        total = (self.own * has[:, :, None]).sum(0)
        mean: Matrix = total / np.maximum(has.sum(0), 1)[:, None]
        return mean


def credit(found: Credits, number: Numbering) -> Matrices:
    """Number the credit; of losses that came several times, in several calls, take the mean."""
    return _numbered(found.by_row, number, found.losses > 0)


def held(record: Record, number: Numbering, with_graph: bool | None = None) -> Matrices:
    """Number the memory, of all calls or only of those with, or without, a graph."""
    times = number.sequence >= 0
    if with_graph is not None:
        times = times & (number.with_graph == with_graph)[:, None]
    found = _numbered(memory(record), number, times)
    found.own = np.minimum(found.own, 1)  # a label may come twice in a call
    return found


def _numbered(
    by_row: dict[tuple[int, int], Matrix], number: Numbering, times: NDArray[np.bool_]
) -> Matrices:
    """Sum entries by number, over the times that a row counts, and divide by how many those are."""
    Q, T = number.sequences, number.steps
    own, seen = np.zeros((Q, T, T)), np.zeros((Q, T))
    there = np.nonzero(times & (number.sequence >= 0))
    np.add.at(seen, (number.sequence[there], number.step[there]), 1)
    across: dict[tuple[int, int, int, int], float] = {}
    for (row, of), W in by_row.items():
        t, s = np.nonzero(W * times[:, row, None])
        q, p = number.sequence[t, row], number.sequence[s, of]
        known = (q >= 0) & (p >= 0)
        t, s, q, p = t[known], s[known], q[known], p[known]
        n, m = number.step[t, row], number.step[s, of]
        same = q == p
        at = np.ravel_multi_index((q[same], n[same], m[same]), own.shape)
        np.add.at(own.reshape(-1), at, W[t[same], s[same]])
        for i in np.flatnonzero(~same).tolist():
            key = int(q[i]), int(n[i]), int(p[i]), int(m[i])
            across[key] = across.get(key, 0) + float(W[t[i], s[i]])
    own /= np.maximum(seen, 1)[:, :, None]
    return Matrices(own, seen, [Across(*k, w) for k, w in sorted(across.items())])
