"""Checking a backward pass of one's own, and naming the mistake in it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.explain.calling import Problem, as_function, call
from bptt._src.explain.exercise import Exercise
from bptt._src.explain.mistakes import Mistake, explain
from bptt._src.explain.naming import Aim, Diagnosis, Fault, diagnosis_of
from bptt._src.explain.patterns import matrix_text

Floats = NDArray[np.float64]
RELATIVE_ERROR = 1e-6, 1e-5
"""Up to which an entry is right, relative to the parameter's greatest: float64, float32."""
FITS = 1e-5
"""The residual up to which weights or a mistake explain a gradient."""


@dataclass(frozen=True)
class ParameterCheck:
    """One parameter's gradient, beside what it should be."""

    name: str
    """U, W, V, b or c."""
    shape: tuple[int, ...]
    """The parameter's."""
    is_right: bool
    """Whether every entry is right, in every sentence."""
    wrong: NDArray[np.bool_] | None
    """The entries that are wrong in some sentence, in the parameter's shape; None if there was
    nothing to compare."""
    error: float
    """The greatest error, relative to the parameter's greatest entry; NaN if there is none."""
    tolerance: float
    """Up to which error an entry is right."""
    where: tuple[int, ...]
    """The sentence, then the entry, that has it."""
    given: float
    """That entry, as the function returned it."""
    expected: float
    """That entry by finite differences; by the terms C[t, s], if the gradient is truncated."""
    weights: Floats | None
    """W[t, s] over the right terms, [T, T], NaN where there is no term; None if they do not explain
    the gradient."""
    rank: int
    """How many of the unknown weights the data determine."""
    unknowns: int
    """How many unknown weights there are."""
    residual: float
    """How much of the gradient no weights over the right terms explain, relative to it."""
    findings: tuple[Diagnosis, ...]
    """What is wrong: faults that explain all of it together, each with ``kind``, ``means`` and
    ``instead``. Several such tuples where each explains it; none if it is right or nothing does."""


@dataclass(frozen=True)
class BackwardReport:
    """The result of :func:`check_backward`: true if all is right. Printed, it is a text."""

    parameters: dict[str, ParameterCheck]
    """What could be compared, by the parameter's name."""
    problems: tuple[Problem, ...]
    """What could not, and why."""
    notes: tuple[str, ...]
    """What is not wrong, but was not expected."""
    aim: Aim
    sentences: int
    """On how many sentences the function was called."""

    def __bool__(self) -> bool:
        return not self.problems and all(p.is_right for p in self.parameters.values())

    @property
    def mistakes(self) -> frozenset[str]:
        """The short names of all that was found: ``factor-missing``, ``truncated``, ``shape``..."""
        found = {p.kind for p in self.problems}
        for parameter in self.parameters.values():
            found |= {fault.kind for finding in parameter.findings for fault in finding}
            if not parameter.is_right and not parameter.findings:
                found.add("unexplained")
        return frozenset(found)

    def __str__(self) -> str:
        """Format a table of all parameters, then each mistake and what to write instead."""
        return "\n".join([self._head(), "", *self._table(), *self._explanations(), *self.notes])

    def _head(self) -> str:
        T, truncate = self.aim.steps, self.aim.truncate
        loss = "mean" if self.aim.is_mean else "sum"
        of = f"{self.sentences} sentences of {T} words, the loss is the {loss} over the words"
        of += "" if truncate is None else f", truncated to {truncate} transitions"
        if self:
            return f"Right ({of})."
        wrong = [f"d{p.name}" for p in self.parameters.values() if not p.is_right]
        wrong += [f"d{p.parameter}" for p in self.problems if p.parameter]
        return f"Wrong: {', '.join(wrong) or 'the call'} ({of})."

    def _table(self) -> list[str]:
        if not self.parameters:
            return []
        by = "finite differences" if self.aim.truncate is None else "truncated terms"
        lines = [
            f"    {'wrong entries':>13}  {'greatest error':20}{'yours':>12}{by:>20}{'rank':>12}"
        ]
        for p in self.parameters.values():
            assert p.wrong is not None
            count = f"{int(p.wrong.sum())} of {p.wrong.size}"
            at, given, expected = f"{p.error:.0e} at {list(p.where[1:])}", p.given, p.expected
            values = f"{at:20}{given:12.6f}{expected:20.6f}"
            if p.is_right:  # which entry differs by rounding most says nothing
                values = f"{f'below {p.tolerance:.0e}':52}"
            lines.append(f"d{p.name}  {count:>13}  {values}{f'{p.rank} of {p.unknowns}':>12}")
        return lines

    def _explanations(self) -> list[str]:
        lines = [""] * bool(self.parameters and not self)
        lines += [f"{problem.text}." for problem in self.problems]
        wrong = [p for p in self.parameters.values() if not p.is_right]
        grouped: dict[Fault, list[str]] = {}
        for p in wrong:
            for fault in p.findings[0] if len(p.findings) == 1 else ():
                grouped.setdefault(fault, []).append(f"d{p.name}")
        for fault, names in grouped.items():
            lines += _lines(fault, ", ".join(names))
        for p in wrong:
            if not p.findings:
                lines += _unexplained(p)
            if len(p.findings) > 1:
                lines.append(f"d{p.name}: {len(p.findings)} explanations fit equally well:")
            for n, finding in enumerate(p.findings if len(p.findings) > 1 else ()):
                for fault in finding:
                    lines += _lines(fault, f"  {n + 1}")
            if p.weights is not None and any(f.kind == "other" for d in p.findings for f in d):
                text = matrix_text(p.weights).splitlines()
                lines += [f"    The weights W[t, s] of d{p.name}:", *(f"    {row}" for row in text)]
        return lines


def check_backward(
    function: Any,
    *,
    truncate: int | None = None,
    loss: str = "sum",
    bias: bool = False,
    steps: int = 8,
    word_dim: int = 7,
    hidden_dim: int = 6,
    seed: int = 0,
) -> BackwardReport:
    """Check a backward pass of the textbook's network, and name the mistake in it.

    The function is called as ``function(x, y, U, W, V)``, and returns ``(dU, dW, dV)``, in these
    shapes, or a dictionary with the keys ``"U"``, ``"W"`` and ``"V"``. With C words, H hidden units
    and T words in a sentence:

    - x, y: integer arrays [T], the words and their targets;
    - U [H, C], W [H, H], V [C, H]: float64 weights;
    - the network: s[t] = tanh(U[:, x[t]] + W @ s[t-1]), s[-1] = 0, o[t] = V @ s[t], and the loss
      -Σ log softmax(o[t])[y[t]].

    Every entry of every parameter is compared with finite differences of the loss, on as many
    sentences as the weights W[t, s] over the terms C[t, s] need to be determined. What is wrong is
    then explained: by weights over the right terms (a gradient that is truncated, counted twice,
    divided by T) or over those of a classic mistake (the factor 1 - s² missing, W in place of its
    transpose, s[-1] without the spare row), or of two at once. Where several mistakes explain it,
    all are said.

    Args:
        function: the backward pass; or an instance of :class:`bptt.textbook.Model` or of a class of
            one's own that has U, W, V and ``bptt(x, y) -> (dU, dW, dV)``. The weights of a copy
            of it are replaced.
        truncate: k, if each loss is to be carried back over k transitions alone, that is k + 1
            cells, as ``bptt_truncate``; by default it is the full gradient.
        loss: ``"sum"`` over the words, as in the tutorials, or ``"mean"``.
        bias: whether the network has biases b [H] and c [C], of the state and of the scores: then
            ``function(x, y, U, W, V, b, c)`` returns ``(dU, dW, dV, db, dc)``.
        steps: T, at least 3.
        word_dim: C.
        hidden_dim: H; not C, so that shapes tell dU and the transpose of dV apart.
        seed: of the sentences and weights.

    Returns:
        A report that is true if all is right; printed, it is a text.

    Raises:
        TypeError: the function takes other arguments.
        ValueError: an option is out of range.

    >>> from bptt.textbook import Model, check_backward
    >>> bool(check_backward(Model(7, 6, bptt_truncate=None)))
    True
    >>> class Forgetful(Model):
    ...     def bptt(self, x, y):
    ...         dU, dW, dV = super().bptt(x, y)
    ...         return dU, 2 * dW, dV
    >>> sorted(check_backward(Forgetful(7, 6, bptt_truncate=None)).mistakes)
    ['counted-twice']
    """
    if loss not in ("sum", "mean"):
        raise ValueError(f'check_backward: loss must be "sum" or "mean", got {loss!r}')
    if steps < 3 or hidden_dim < 2 or word_dim < 2 or hidden_dim == word_dim:
        raise ValueError(
            f"check_backward: {steps=} must be at least 3, {word_dim=} and {hidden_dim=} at least "
            "2, and not the same"
        )
    if truncate is not None and truncate < 0:
        raise ValueError(f"check_backward: {truncate=} is below 0; use None for no truncation")
    names = ("U", "W", "V", "b", "c") if bias else ("U", "W", "V")
    run = as_function(function, names)
    # Twice as many equations as weights in the parameter that gives the fewest.
    count = 2 + -(-steps * (steps + 1) // (hidden_dim if bias else hidden_dim * 2))
    sentences = Exercise.draw(count, steps, word_dim, hidden_dim, bias, seed)
    returned = call(run, sentences)
    aim = Aim(steps, truncate, loss == "mean")
    found: dict[str, ParameterCheck] = {}
    known: list[tuple[Mistake, ...]] = []
    for name in ("V", "c", "b", "U", "W"):  # those that fewer mistakes can reach come first
        if name in returned.gradients:
            gradient, single = returned.gradients[name], returned.is_single
            found[name], mistakes = _check(name, gradient, sentences, aim, single, known)
            known += mistakes
    parameters = {name: found[name] for name in names if name in found}
    return BackwardReport(_agreeing(parameters), returned.problems, returned.notes, aim, count)


def _check(
    name: str,
    gradient: Floats,
    sentences: Exercise,
    aim: Aim,
    is_single: bool,
    known: list[tuple[Mistake, ...]],
) -> tuple[ParameterCheck, list[tuple[Mistake, ...]]]:
    """Compare one gradient; return the mistakes that explain it, too."""
    T = aim.steps
    if aim.truncate is None:
        expected = sentences.slopes(name)
    else:
        band = np.tri(T, dtype=bool) & ~np.tri(T, k=-aim.truncate - 1, dtype=bool)
        expected = sentences.terms(names=(name,))[name][:, band].sum(1)
    expected = expected / T if aim.is_mean else expected
    size = np.abs(expected).max(tuple(range(1, expected.ndim)), keepdims=True)
    error = np.abs(gradient - expected) / size
    wrong = error > RELATIVE_ERROR[is_single]
    where = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
    right, explanations = explain(name, sentences, gradient, FITS, known)
    found = [diagnosis_of(name, e, aim) for e in explanations] if wrong.any() else []
    if found == [()]:
        text = f"it is right to {error.max():.0e} of its greatest entry, not to rounding"
        found = [(Fault("imprecise", text, "the gradient itself, no differences, in float64"),)]
    checked = ParameterCheck(
        name=name,
        shape=gradient.shape[1:],
        is_right=not wrong.any(),
        wrong=wrong.any(0),
        error=float(error[where]),
        tolerance=RELATIVE_ERROR[is_single],
        where=where,
        given=float(gradient[where]),
        expected=float(expected[where]),
        weights=right.values if right.is_weights and right.rank == right.unknowns else None,
        rank=right.rank,
        unknowns=right.unknowns,
        residual=right.residual,
        findings=tuple(dict.fromkeys(filter(None, found))),
    )
    return checked, [e.mistakes for e in explanations]


def _agreeing(parameters: dict[str, ParameterCheck]) -> dict[str, ParameterCheck]:
    """Where several mistakes explain one gradient, keep those that explain the others, too."""
    wrong = [p for p in parameters.values() if p.findings and p.name in ("U", "W", "b")]
    common = set.intersection(*({*p.findings} for p in wrong)) if wrong else set()
    return {
        name: replace(p, findings=tuple(f for f in p.findings if f in common))
        if common and p in wrong
        else p
        for name, p in parameters.items()
    }


def _unexplained(p: ParameterCheck) -> list[str]:
    assert p.wrong is not None
    lines = [
        f"d{p.name}: no weights over the terms C[t, s] explain it, nor one or two of the classic "
        f"mistakes; a part of {p.residual:.2g} is left over."
    ]
    for dim, what in enumerate(("rows", "columns")[: p.wrong.ndim]):
        others = tuple(d for d in range(p.wrong.ndim) if d != dim)
        there = p.wrong.any(others)
        if not there.all():
            listed = ", ".join(map(str, np.flatnonzero(there)))
            lines.append(f"    Wrong are the {what} {listed} alone.")
    return lines


def _lines(fault: Fault, head: str) -> list[str]:
    return [f"{head}: {fault.means}.", f"    Instead: {fault.instead}."]
