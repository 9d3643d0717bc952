"""The words for what was found in a gradient: mistakes, factors and forms of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bptt._src.explain.exercise import Floats
from bptt._src.explain.mistakes import Explained
from bptt._src.explain.patterns import CLOSE, Pattern, recognise


class Fault(NamedTuple):
    """One thing that is wrong with a gradient, in words."""

    kind: str
    """A short name: ``factor-missing``, ``truncated``..."""
    means: str
    """What is wrong."""
    instead: str
    """What to write instead, or where to look."""


Diagnosis = tuple[Fault, ...]
"""What is wrong with a gradient: all of it together."""


@dataclass(frozen=True)
class Aim:
    """What the gradient should have been."""

    steps: int
    """T."""
    truncate: int | None
    """Over how many transitions a loss should be carried back; None for all."""
    is_mean: bool
    """Whether the loss is the mean over the words, not the sum."""


def diagnosis_of(name: str, explained: Explained, aim: Aim) -> Diagnosis:
    """Put an explanation into words: its mistakes, and what the weights over their terms say.

    Args:
        name: the parameter's.
        explained: the mistakes and the weights.
        aim: what the gradient should have been.
    """
    scale = aim.steps if aim.is_mean else 1
    fit = explained.fit
    pattern = recognise(fit.values * scale, fit.errors * scale)
    parts = [Fault(m.kind, m.means, m.instead) for m in explained.mistakes]
    parts += _of_factor(pattern.factor, aim)
    is_diagonal = not np.tril(fit.has_term, -1).any()
    step = _only_step(fit.values)
    if step is None or (is_diagonal and name == "V"):
        parts += _of_form(pattern, aim, is_diagonal)
    else:
        also = f", or no loss but that of step {step} enters" if is_diagonal else ""
        text = f"only the part of step {step} is there: it is not summed over the steps{also}"
        parts.append(Fault("not-summed", text, f"d{name} += ..., with +=, at each step"))
    return tuple(parts)


def _only_step(values: Floats) -> int | None:
    """Return s if the weights of all other steps' uses are 0."""
    used = np.flatnonzero((abs(np.nan_to_num(values)) > CLOSE).any(0))
    return int(used[0]) if len(used) == 1 and np.isfinite(values).any(0).sum() > 1 else None


def _of_factor(factor: float, aim: Aim) -> list[Fault]:
    T, size = aim.steps, abs(factor)
    found = []
    if factor < 0:
        found.append(Fault("sign", "the sign is reversed", "e[t] = p[t] - onehot(y[t]), not y - p"))

    def near(value: float) -> bool:
        return bool(np.isclose(size, value, rtol=5e-3))

    if near(1) or size == 0:
        return found
    by_mean = (
        "the loss is the mean over the words, so divide",
        "the loss is summed over the words",
    )
    if near(T) and aim.is_mean:
        found.append(
            Fault("not-divided", f"it is not divided by T = {T}", f"{by_mean[0]} it by T once")
        )
    elif near(1 / T**2) or (near(1 / T) and aim.is_mean):
        once = f"{by_mean[0]} by T once" if aim.is_mean else f"{by_mean[1]}: do not divide"
        found.append(Fault("divided-twice", f"it is divided by T = {T} twice", once))
    elif near(1 / T):
        text = f"{by_mean[1]}: do not divide; if yours is the mean, check with loss='mean'"
        found.append(Fault("divided", f"it is divided by T = {T}", text))
    elif near(2):
        found.append(
            Fault(
                "counted-twice",
                "it is counted twice: all of it is the double",
                "add each term once",
            )
        )
    else:
        found.append(
            Fault("scaled", f"all of it is multiplied by {size:.4g}", "leave the factor out")
        )
    return found


def _of_form(pattern: Pattern, aim: Aim, is_diagonal: bool) -> list[Fault]:
    wanted = aim.truncate
    if wanted is not None and wanted >= aim.steps - 1:
        wanted = None
    kind, k, text = pattern.kind, pattern.size, pattern.text
    if kind == "nothing":
        return [Fault("nothing", "it is zero", "add every step's part: dW += ..., with +=")]
    if is_diagonal:
        wanted = None
    if kind == "full" and wanted is None:
        return []
    if kind == "full" and wanted is not None:
        text = "it is the full gradient, not truncated"
        return [Fault("not-truncated", text, f"stop each loss's way back: {_walk(wanted)}")]
    if kind == "truncated" and wanted is not None and k is not None:
        if k == wanted:
            return []
        if abs(k - wanted) == 1:
            text = f"each loss goes back over {k} transitions, not {wanted}: off by one"
            return [
                Fault(
                    "off-by-one",
                    text,
                    f"{wanted} transitions are {wanted + 1} cells: {_walk(wanted)}",
                )
            ]
    if kind == "truncated" and k == 0:
        return [
            Fault("nothing-from-next-step", text, "delta_next = delta, at the end of each turn")
        ]
    if kind == "truncated":
        text += ", where it should go on to the first step" if wanted is None else ""
        to = f"go on to step 0: for i in range(t, -1, -1); if it is meant, check with truncate={k}"
        to = to if wanted is None else f"carry it back over {wanted}: {_walk(wanted)}"
        return [Fault("truncated", text, to)]
    hints = {
        "windows": "hand the gradient on to the step before at the windows' edges, too",
        "reach": "carry each loss back to the first step",
        "no-steps": "add each step's part with +=, over all steps down to 0",
        "no-losses": "let the loss of each step enter, with +=",
        "by-loss": "let each loss enter once, at its own step",
        "by-step": "add each step's part once",
        "by-distance": "hand on W.T @ delta as it is",
        "other": "compare with the matrix of weights, which should be 1",
    }
    return [Fault(kind, text, hints[kind])]


def _walk(k: int) -> str:
    return f"for i in range(t, max(t - {k} - 1, -1), -1)"
