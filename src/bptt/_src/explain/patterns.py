"""What a weight matrix says in words: truncated, windows, counted twice, a loss that is missing.

NumPy only. Patterns are tried from the plainest on, and the first that agrees with every weight
that is known is taken; weights that are not (NaN) agree with everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLOSE = 2e-3
"""Weights that differ by less, relative to the greatest, or by a few standard errors, are equal."""


@dataclass(frozen=True)
class Pattern:
    """A form of the weights: a factor times a matrix that has a name."""

    kind: str
    """``full``, ``truncated``, ``windows``, ``reach``, ``no-steps``, ``no-losses``, ``nothing``,
    ``by-loss``, ``by-step``, ``by-distance`` or ``other``."""
    factor: float
    """What all weights are multiplied by."""
    text: str
    """The form in words, without the factor."""
    size: int | None = None
    """k: of ``truncated`` the transitions, of ``windows`` the steps; else None."""


def recognise(values: Floats, errors: Floats) -> Pattern:
    """Name the form of a weight matrix.

    Args:
        values: W[t, s], [T, T]; NaN where it is not known.
        errors: the standard errors, [T, T].
    """
    T = len(values)
    known = np.isfinite(values) & np.tri(T, dtype=bool)
    w = np.where(known, values, 0.0)
    largest = float(abs(w).max(initial=0.0))
    slack = CLOSE * largest + 5 * np.where(known, errors, 0.0)

    def agrees(form: Floats) -> bool:
        return bool((abs(w - form)[known] <= slack[known]).all())

    if not known.any():
        return Pattern("other", 1.0, "no weight is known")
    if largest < CLOSE:
        return Pattern("nothing", 0.0, "nothing of it is there: all weights are 0")
    for kind, size, matrix, text in _named(w, known, slack):
        support = known & (matrix != 0)
        if support.any():
            factor = float(np.median(w[support]))
            if abs(factor) > CLOSE * largest and agrees(factor * matrix):
                return Pattern(kind, factor, text, size)
    for kind, form, text in _functions(w, known):
        if agrees(form):
            return Pattern(kind, 1.0, text)
    return Pattern("other", 1.0, "the weights of the terms are not all 1 (see the matrix)")


def _named(
    w: Floats, known: NDArray[np.bool_], slack: Floats
) -> Iterator[tuple[str, int | None, Floats, str]]:
    """Yield matrices of ones and zeros: (kind, size, matrix, words)."""
    T = len(w)
    t, s = np.indices((T, T))
    below = s <= t

    def of(where: NDArray[np.bool_]) -> Floats:
        return (where & below).astype(float)

    yield "full", None, of(below), "full: each loss reaches all the steps before it"
    yield "truncated", 0, of(t == s), "nothing comes back from step t + 1 to step t"
    for k in range(1, T - 1):
        text = f"truncated: each loss goes back over {_count(k, 'transition')}, {k + 1} cells"
        yield "truncated", k, of(t - s <= k), text
    present = abs(w) > slack
    cuts = [j for j in range(1, T) if known[j, j - 1] and not present[j, j - 1]]
    if cuts:
        window = np.searchsorted(cuts, np.arange(T), side="right")
        size = _spacing(cuts, known)
        what = f"windows of {_count(size, 'step')}" if size else "cut into windows"
        at = f"nothing comes back into {_listed([j - 1 for j in cuts])}"
        yield "windows", size, of(window[t] == window[s]), f"{what}: {at}"
    for every in range(2, T):
        for reach in range(every + 1, T):
            since = (t // every + 1) * every - reach
            text = f"every={every}, reach={reach}: the losses of each {every} steps together"
            yield "reach", None, of(s >= since), text
    rows = [i for i in range(T) if known[i].any() and not present[i].any()]
    columns = [i for i in range(T) if known[:, i].any() and not present[:, i].any()]
    if rows:
        kept = [i for i in range(T) if known[i].any() and i not in rows]
        text = f"only the loss of {_listed(kept)} is there"
        if len(kept) > len(rows):
            text = f"the loss of {_listed(rows)} is missing"
        yield "no-losses", None, of(~np.isin(t, rows)), text
    if columns:
        kept = [i for i in range(T) if known[:, i].any() and i not in columns]
        text = f"only what is used at {_listed(kept)} is there"
        if len(kept) > len(columns):
            text = f"what is used at {_listed(columns)} is missing"
        yield "no-steps", None, of(~np.isin(s, columns)), text
    if rows and columns:
        text = f"the loss of {_listed(rows)} and what is used at {_listed(columns)} are missing"
        yield "no-losses", None, of(~np.isin(t, rows) & ~np.isin(s, columns)), text


def _functions(w: Floats, known: NDArray[np.bool_]) -> Iterator[tuple[str, Floats, str]]:
    """Yield what depends on t alone, on s alone, or on t - s alone: (kind, matrix, words)."""
    T = len(w)
    t, s = np.indices((T, T))
    for kind, by, says in (
        ("by-loss", t, "each loss has a factor of its own"),
        ("by-step", s, "each step's use has a factor of its own"),
        ("by-distance", t - s, "the factor depends on the distance t - s alone"),
    ):
        values = np.full(T, np.nan)
        for i in range(T):
            there = known & (by == i)
            if there.any():
                values[i] = np.median(w[there])
        form = np.where(s <= t, np.nan_to_num(values)[np.clip(by, 0, T - 1)], 0.0)
        yield kind, form, f"{says}{_progression(kind, values)}"


def _progression(kind: str, values: Floats) -> str:
    """Name the few sequences of factors that are known; list others."""
    T, there = len(values), np.isfinite(values)

    def are(expected: Callable[[Floats], Floats]) -> bool:
        form = expected(np.arange(T, dtype=float))
        return bool(np.allclose(values[there], form[there], rtol=1e-2, atol=1e-2))

    if kind == "by-loss" and are(lambda t: T - t):
        return ", T - t: it is added again at each cell that a later loss passes"
    if kind == "by-distance" and there[:2].all() and values[0]:
        rate = float(values[1] / values[0])
        if are(lambda d: values[0] * rate**d):
            return f": it is multiplied by {rate:.4g} at each step back"
        if are(lambda d: values[0] * (d + 1)):
            return ", t - s + 1: what comes back is added once more at each step"
    return ": " + ", ".join(f"{v:.3g}" if np.isfinite(v) else "?" for v in values)


def _spacing(cuts: list[int], known: NDArray[np.bool_]) -> int | None:
    """Return k if the cuts are at the multiples of k, as far as is known."""
    T = len(known)
    seen = {j for j in range(1, T) if known[j, j - 1]}
    for k in range(2, T):
        if set(range(k, T, k)) & seen == {*cuts}:
            return k
    return None


def _listed(steps: list[int]) -> str:
    """List steps as ``steps 1, 2 and 5``, runs of three and more as ``3 to 7``."""
    parts: list[str] = []
    i = 0
    while i < len(steps):
        end = i
        while end + 1 < len(steps) and steps[end + 1] == steps[end] + 1:
            end += 1
        run = steps[i : end + 1]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
        i = end + 1
    joined = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"step{'s' * (len(steps) > 1)} {joined}"


def _count(n: int | None, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def matrix_text(values: Floats) -> str:
    """Print the lower triangle of W, a row for each loss; ``?`` where a weight is not known.

    >>> print(matrix_text(np.array([[np.nan, 0.0], [np.nan, 0.5]])))
    t =  0      ?
    t =  1      ?    0.5
    """
    lines = []
    for t, row in enumerate(values):
        cells = ("?" if np.isnan(v) else f"{round(float(v), 2) + 0.0:g}" for v in row[: t + 1])
        lines.append(f"t = {t:2} " + " ".join(f"{cell:>6}" for cell in cells))
    return "\n".join(lines)
