"""What is drawn of an audit: matrices in few characters, and where calls and episodes begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bptt import Audit

Matrix = NDArray[np.float64]

ONLY_IN = {
    "credit-crosses-episode": "credit",
    "counted-twice": "credit",
    "memory-crosses-episode": "memory",
}
"""Kinds of findings whose place means something in one of the matrices only."""


def packed(report: Audit) -> dict[str, Any]:
    """Return the page's data: a report as plain values, the matrices in runs of equal entries.

    A matrix is a list of its rows; a row lists a number of entries, their value, the next number
    and value, and so on, up to the last entry that is not 0.
    """
    return {
        "module": report.record.name,
        "counts": report.counts,
        "steps": report.steps,
        "start": report.start,
        "sequences": [str(name) for name in report.sequences],
        "credit": {"mean": in_runs(report.credit), "each": [*map(in_runs, report.credits)]},
        "memory": {"mean": in_runs(report.memory), "each": [*map(in_runs, report.memories)]},
        "has_loss": report.has_loss.astype(int).tolist(),
        "calls": calls(report),
        "ends": [episode_starts(report, q) for q in range(len(report.sequences))],
        "both_ways": report.is_bidirectional,
        "findings": [{**f.to_dict(), "matrices": matrices_of(f.kind)} for f in report.findings],
    }


def matrices_of(kind: str) -> list[str]:
    """Return in which matrices the place of a finding means something."""
    return [ONLY_IN[kind]] if kind in ONLY_IN else ["credit", "memory"]


def in_runs(W: Matrix) -> list[list[float | int]]:
    """Write the rows of a matrix in runs of equal entries."""
    return [_row(w) for w in W]


def _row(w: Matrix) -> list[float | int]:
    end = int(np.flatnonzero(w)[-1]) + 1 if w.any() else 0
    w = w[:end]
    first = np.flatnonzero(np.r_[True, w[1:] != w[:-1]]) if end else np.zeros(0, int)
    runs: list[float | int] = []
    for n, value in zip(np.diff(np.r_[first, end]).tolist(), w[first].tolist(), strict=True):
        runs += [n, int(value) if value == int(value) else float(f"{value:.6g}")]
    return runs


def calls(report: Audit) -> list[list[tuple[int, int]]]:
    """Return for each sequence where its calls begin and end, counted from 0.

    Empty where every call is a step: there is nothing to tell apart.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in report.sequences]
    if all(call.steps == 1 for call in report.record.calls):
        return found
    for q, t, steps in report.call_places():
        found[q].append((t, t + steps))
    return [sorted(set(those)) for those in found]


def episode_starts(report: Audit, sequence: int) -> list[int]:
    """Return the steps, counted from 0, at which an episode begins after another one."""
    if report.episodes is None:
        return []
    of = report.episodes[sequence]
    starts = (of[1:] != of[:-1]) & (of[1:] >= 0) & (of[:-1] >= 0)
    found: list[int] = (np.flatnonzero(starts) + 1).tolist()
    return found
