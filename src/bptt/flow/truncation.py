"""How far back to credit losses, from how far the gradient was seen to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt.flow.lags import what_follows
from bptt.flow.verdict import squares

if TYPE_CHECKING:
    from bptt.flow.flow import GradientFlow


SAFETY = 2.0
"""The share left out may be so much less than the bias asked for."""


class Tail(NamedTuple):
    """What the lags beyond K hold, relative to all, for K = 0, 1, ...: [lags]."""

    coherent: NDArray[np.float64]
    """Σ_{k>K} φ_k / Σ φ_k: where the gradients of all steps point the same way."""
    incoherent: NDArray[np.float64]
    """The same of squares, and the root: where they point everywhere."""


def suggest(flow: GradientFlow, bias: float = 0.1) -> int | None:
    """Suggest the least K whose credit ``Truncated(every=K, reach=2 * K)`` has at most a bias.

    Under that credit every loss reaches K steps back at least (2K - 1 at most), so what is left
    out is lags beyond K. With φ_k the norm of the gradient that is k steps back, of all of the
    state together, that is a share of the sum of the norms, or of the root of the sum of squares,
    according to whether the gradients of the steps and sequences add up or cancel. The larger one
    counts, and half of the bias asked for is aimed at: norms do not tell whether near lags cancel
    more than far ones do. So it is an estimate, mostly on the safe side (``python
    benchmarks/suggested_reach.py``), and no bound; :func:`bptt.estimator_error` measures the bias.

    It is about sequences like those that were followed, and what the network does now: a
    dependency that is not learnt yet has no gradient to be seen.

    Args:
        flow: what :func:`bptt.gradient_flow` found. Of an excerpt from something longer (its
            ``excerpt``) each lag counts as if all losses had it, and lags beyond those that were
            followed as the decay says.
        bias: the relative bias ‖E ĝ - g‖ / ‖g‖ that is tolerated, above 0 and below 1.

    Returns:
        K, in steps; T - 1 where only the whole sequence is enough. None where the lags that were
        followed do not tell: they are not all, and the gradient has not decayed within them; or
        where it is not finite, or zero.

    Raises:
        ValueError: the bias is out of its range.
    """
    if not 0 < bias < 1:
        raise ValueError(f"suggest_truncation: bias must be between 0 and 1, got {bias!r}")
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
