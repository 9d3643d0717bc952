"""The classic mistakes in a backward pass of one's own, and which of them a gradient shows.

Each mistake is a choice of other terms (:class:`Choice`). A gradient shows it if some weights over
these terms explain it, where none over the right ones do. If no mistake does so alone, pairs are
tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from bptt._src.explain.exercise import RIGHT, Choice, Exercise, Factor, Floats, Where
from bptt._src.explain.solving import Equations, WeightFit, solve

_OF_STATES = ("U", "W", "b")
_ALL = ("U", "W", "V", "b", "c")


@dataclass(frozen=True, eq=False)
class Mistake:
    """A mistake that leads to other terms."""

    kind: str
    """A short name, for tests and tools."""
    field: str
    """The field of :class:`Choice` that it changes."""
    choice: dict[str, Any]
    """The fields' values."""
    parameters: tuple[str, ...]
    """Whose gradient it makes wrong."""
    means: str
    """What is wrong."""
    instead: str
    """What to write instead."""


_FACTORS: tuple[tuple[str, Factor, str], ...] = (
    ("factor-missing", "missing", "the factor 1 - s[t]**2 is missing"),
    ("factor-of-step-before", "step before", "the factor is 1 - s[t-1]**2, of the step before"),
    ("factor-of-step-after", "step after", "the factor is 1 - s[t+1]**2, of the step after"),
    ("factor-not-squared", "1 - s", "the factor is 1 - s[t], without the square"),
    ("factor-of-sigmoid", "s (1 - s)", "the factor is s[t] * (1 - s[t]), the sigmoid's"),
    ("factor-of-input", "1 - a²", "the factor is 1 - a[t]**2, of tanh's input, not of its value"),
    ("factor-tanh-twice", "tanh twice", "the factor is 1 - tanh(s[t])**2: tanh is applied twice"),
)
_WHERE: tuple[tuple[Where, str], ...] = (
    ("everywhere", ""),
    ("entry", ", where a loss enters, at its own step"),
    ("way back", ", on the way back, at the steps before a loss's own"),
)


def _factor(kind: str, factor: Factor, means: str, where: Where, at: str) -> Mistake:
    return Mistake(
        kind,
        "factor",
        {"factor": factor, "where": where},
        _OF_STATES,
        means + at,
        "delta[t] = (1 - s[t]**2) * (V.T @ e[t] + W.T @ delta[t+1])",
    )


MISTAKES = (
    *(_factor(*factor, *where) for where in _WHERE for factor in _FACTORS),
    Mistake(
        "weight-not-transposed",
        "transposed_weight",
        {"transposed_weight": True},
        _OF_STATES,
        "the gradient goes from step t + 1 to step t through W, not through its transpose",
        "W.T @ delta[t+1]",
    ),
    Mistake(
        "carried-before-factor",
        "carried_before_factor",
        {"carried_before_factor": True},
        _OF_STATES,
        "what goes on to the step before is taken without the factor 1 - s[t]**2",
        "delta[t] = (1 - s[t]**2) * ds, and then W.T @ delta[t], not W.T @ ds",
    ),
    Mistake(
        "state-of-same-step",
        "state",
        {"state": "one later"},
        ("W",),
        "it is taken with s[t], the state after the step, not with s[t-1], the one before",
        "dW += np.outer(delta[t], s[t-1])",
    ),
    Mistake(
        "no-spare-row",
        "state",
        {"state": "no spare row"},
        ("W",),
        "at t = 0, s[t-1] is s[-1], the last state of the sentence, not the zero state",
        "s = np.zeros((T + 1, H)), whose spare last row is s[-1]; or leave t = 0 out of dW",
    ),
    Mistake(
        "state-of-step-before",
        "state",
        {"state": "one earlier"},
        ("V",),
        "it is taken with s[t-1], not with s[t]",
        "dV += np.outer(e[t], s[t])",
    ),
    Mistake(
        "transposed-result",
        "transposed_result",
        {"transposed_result": True},
        ("W",),
        "it is the transpose of the gradient",
        "np.outer(delta[t], s[t-1]): the rows are those of delta",
    ),
    Mistake(
        "repeated-word-last",
        "words",
        {"words": "last"},
        ("U",),
        "of a word that comes several times only the last use is there",
        "np.add.at(dU.T, x, delta), as dU[:, x] += delta.T adds once to each column",
    ),
    Mistake(
        "repeated-word-first",
        "words",
        {"words": "first"},
        ("U",),
        "of a word that comes several times only the first use is there",
        "dU[:, x[t]] += delta[t], with +=",
    ),
    Mistake(
        "target-not-subtracted",
        "scores",
        {"scores": "target not subtracted"},
        _ALL,
        "the gradient at the scores is the probabilities p, without the 1 at the target",
        "e[t] = p[t]; e[t, y[t]] -= 1",
    ),
    Mistake(
        "inputs-as-targets",
        "scores",
        {"scores": "inputs as targets"},
        _ALL,
        "the 1 is subtracted at the input x[t], not at the target y[t]",
        "e[t] = p[t]; e[t, y[t]] -= 1",
    ),
    Mistake(
        "softmax-forgotten",
        "scores",
        {"scores": "softmax forgotten"},
        _ALL,
        "the gradient at the scores has the scores themselves, not their softmax",
        "e[t] = softmax(o[t]); e[t, y[t]] -= 1",
    ),
)


@dataclass(frozen=True)
class Explained:
    """The mistakes that explain a gradient together, and the weights over their terms."""

    mistakes: tuple[Mistake, ...]
    """None if the terms are right."""
    fit: WeightFit


def explain(
    name: str,
    sentences: Exercise,
    gradient: Floats,
    tolerance: float,
    known: Collection[tuple[Mistake, ...]] = (),
) -> tuple[WeightFit, list[Explained]]:
    """Find the fewest mistakes that explain the gradient of one parameter.

    Args:
        name: U, W, V, b or c.
        sentences: what it was computed on.
        gradient: of each sentence, [N, ...].
        tolerance: the relative residual that rounding explains.
        known: the mistakes that explain other parameters' gradients.

    Returns:
        The fit over the right terms, and all explanations with as few mistakes as possible; none
        if neither two mistakes explain it, nor those that are known and one more.
    """
    right = _fit(name, sentences, gradient, tolerance, RIGHT)
    if right.is_weights:
        return right, [Explained((), right)]
    for sets in _sets(name, known):
        found = []
        for mistakes in sets:
            choice = RIGHT
            for mistake in mistakes:
                choice = replace(choice, **mistake.choice)
            fit = _fit(name, sentences, gradient, tolerance, choice)
            if fit.is_weights and fit.equations > fit.rank:
                found.append(Explained(mistakes, fit))
        if found:
            return right, found
    return right, []


def _sets(name: str, known: Collection[tuple[Mistake, ...]]) -> Iterator[list[tuple[Mistake, ...]]]:
    """Yield mistakes to try together, the plainest first: one, one in some places, two."""
    own = [m for m in MISTAKES if name in m.parameters]
    partial = [m for m in own if m.choice.get("where", "everywhere") != "everywhere"]
    plain = [m for m in own if m not in partial]
    shared = dict.fromkeys(tuple(m for m in mistakes if m in own) for mistakes in known)
    several = [mistakes for mistakes in shared if len(mistakes) > 1]
    yield [*((m,) for m in plain), *several]
    yield [(m,) for m in partial]
    yield [(*k, m) for k in shared if k for m in plain if m.field not in {n.field for n in k}]
    yield [pair for pair in combinations(plain, 2) if pair[0].field != pair[1].field]
    yield [(p, m) for p in partial for m in plain if p.field != m.field]


def _fit(
    name: str, sentences: Exercise, gradient: Floats, tolerance: float, choice: Choice
) -> WeightFit:
    N, T = sentences.x.shape
    terms = sentences.terms(choice, (name,))[name].reshape(N, T, T, -1)
    data = [Equations(C, g) for C, g in zip(terms, gradient.reshape(N, -1), strict=True)]
    return solve(data, tolerance)
