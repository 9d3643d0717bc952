"""How far back to credit losses, from how far the gradient was seen to reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt._src.flow.lags import what_follows
from bptt._src.flow.verdict import squares
from bptt.errors import ConfigError

if TYPE_CHECKING:
    from bptt._src.flow.flow import GradientFlow


SAFETY = 2.0
"""The share left out may be so much less than the bias asked for."""
GROWS = 1.25
"""K becomes so many times as large where the bias measured is too large."""


class Tail(NamedTuple):
    """What the lags beyond K hold, relative to all, for K = 0, 1, ...: [lags]."""

    coherent: NDArray[np.float64]
    """Σ_{k>K} φ_k / Σ φ_k: where the gradients of all steps point the same way."""
    incoherent: NDArray[np.float64]
    """The same of squares, and the root: where they point everywhere."""


class Suggestion(NamedTuple):
    """A truncation, and its bias."""

    bias: float
    """The relative bias ‖E ĝ - g‖ / ‖g‖ that was asked for."""
    reach: int | None
    """K, in steps: every loss is to reach so far back at least. None: the lags that were followed
    do not tell."""
    every: int | None
    """An update is made after so many steps; K itself where no window was given."""
    measured: float | None
    """The bias that ``Truncated(every=every, reach=every + K)`` has on the sequences that were
    followed; None where it was not measured, so that K is an estimate."""
    why: str | None
    """Why it was not measured, or why there is no K."""


def suggest(flow: GradientFlow, bias: float = 0.1, every: int | None = None) -> Suggestion:
    """Suggest a K whose credit ``Truncated(every=K, reach=2 * K)`` has at most a certain bias.

    Where an update has to be made every W steps it is ``Truncated(every=W, reach=W + K)``. Under
    either every loss reaches at least K steps back.

    First K is estimated: :func:`estimate`. Then the bias is measured there, on the sequences that
    were followed (:func:`bptt.estimator_error`, for all of the module's parameters and the sum of
    the losses followed), and K is raised by a quarter until it is what was asked for. Each
    measurement takes about as long as three or four training steps on these sequences. Of an
    excerpt only the losses count that have more lags than the credit reaches, W + K; there have to
    be W of them.

    It is about sequences like those that were followed, and about what the network does now: a
    dependency that has not been learnt yet has no gradient to be seen.

    Args:
        flow: what :func:`bptt.gradient_flow` found.
        bias: the relative bias ‖E ĝ - g‖ / ‖g‖ that is tolerated, above 0 and below 1.
        every: W.

    Raises:
        ValueError: the bias is out of its range, or ``every`` is below 1.
    """
    if not 0 < bias < 1:
        raise ValueError(f"suggest_truncation: bias must be between 0 and 1, got {bias!r}")
    if every is not None and every < 1:
        raise ValueError(f"suggest_truncation: every must be 1 at least, got {every!r}")
    K, why = estimate(flow, bias), None
    untold = flow.excerpt or flow.lags < 2 or flow.bias_of is None or tail(flow) is None
    if K is None and untold:
        return Suggestion(bias, None, every, None, "the lags that were followed do not tell")
    K = K or max(1, flow.lags - 1)  # nothing lies before whole sequences
    if flow.bias_of is None:
        return Suggestion(bias, K, every or K, None, "the module is not at hand")
    was = None
    while True:
        W = every or K
        first = W + K if flow.excerpt else 0
        if flow.excerpt and flow.steps < first + W:
            why = f"that takes an excerpt of {first + W} steps, and this one has {flow.steps}"
            break
        try:
            was = flow.bias_of(W, W + K, first)
        except ConfigError as e:
            why = str(e)
            break
        if was <= bias or flow.steps <= W + K:
            return Suggestion(bias, K, W, was, None)
        K = max(K + 1, math.ceil(GROWS * K))
    if was is not None:  # it was too large, as far as that could be measured
        return Suggestion(bias, None, every, None, f"at {K} steps it cannot be measured: {why}")
    return Suggestion(bias, K, W, None, why)


def estimate(flow: GradientFlow, bias: float = 0.1) -> int | None:
    """Estimate the least K for which the lags beyond K hold little enough; it is no bound.

    With φ_k the norm of the gradient that is k steps back, of all of the state together, what lies
    beyond K is a share of the sum of the norms, or of the root of the sum of squares, according to
    whether the gradients of the steps and sequences add up or cancel. The larger one counts, and
    half of the bias asked for is aimed at. Norms do not tell whether near lags cancel more than
    far ones do: where they do, as in a network that remembers something for long, the bias is
    several times the estimate (``python benchmarks/suggested_reach.py``).

    Of an excerpt each lag counts as if all losses had it, and lags beyond those that were followed
    as the decay says.

    Args:
        flow: what :func:`bptt.gradient_flow` found.
        bias: as for :func:`suggest`.

    Returns:
        K, in steps; T - 1 where only the whole sequence is enough. None where the lags that were
        followed do not tell: they are not all, and the gradient has not decayed within them; or
        where it is not finite, or zero.
    """
    found = tail(flow)
    if found is None or flow.lags < 2:
        return None
    (enough,) = np.nonzero(np.maximum(*found) <= bias / SAFETY)
    return max(1, int(enough[0])) if len(enough) else None


def tail(flow: GradientFlow) -> Tail | None:
    """Find what the lags beyond each K hold; None where it is not finite, or zero.

    Where not all lags were followed, or the sequence is an excerpt, what lies beyond them is taken
    to decay on as :attr:`GradientFlow.decay` says; if it does not decay, to go on for as many lags
    again.
    """
    first, second = _moments(flow)
    if not (np.isfinite(first).all() and first.sum() > 0):
        return None
    beyond = np.zeros(2)
    if (flow.lags < flow.steps or flow.excerpt) and first[-1] > 0:
        beta = 1.0 if flow.decay is None else flow.decay.beta
        beyond[0], beyond[1] = what_follows(first, beta), what_follows(second, beta**2)
    shares = []
    for values, rest in zip((first, second), beyond, strict=True):
        after = np.append(values[::-1].cumsum()[::-1][1:], 0.0) + rest
        shares.append(after / (values.sum() + rest))
    return Tail(shares[0], np.sqrt(shares[1]))


def _moments(flow: GradientFlow) -> NDArray[np.float64]:
    """Σ over losses and sequences of φ_k, and of φ_k², for each lag: [2, lags].

    A sum, not a mean: a lag that few losses have weighs little. Of an excerpt they are few only
    because it begins: there it is the sum at lag 1, times what is left of that at lag k in those
    losses that have both.
    """
    all_of_it = squares(flow)
    here, near = np.zeros((2, 2, flow.lags))  # near: lag 0 of those with lag 1, lag 1 of the others
    for n, t in enumerate(flow.times):
        of_t = all_of_it[:, n, max(0, t - flow.lags + 1) : t + 1].flip(1)
        for power, values in enumerate((of_t.sqrt(), of_t)):
            total = values.sum(0).cpu().numpy()
            here[power, : len(total)] += total
            if len(total) > 1:
                near[power, 0] += total[0]
                near[power, 1 : len(total)] += total[1]
    if flow.excerpt and flow.lags > 1:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = np.where(here == 0, 0.0, here / near)
        here = relative * near[:, 1:2]
        here[:, 0] = near[:, 0]
    return here
