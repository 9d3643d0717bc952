"""Whether the gradient vanishes, explodes, or does neither, over the lags that were followed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from bptt._src.flow.dynamics import Dynamics
    from bptt._src.flow.flow import GradientFlow

FADED = 0.01
"""A gradient has vanished where it stays below this share of what it was a step back, ..."""

WITHIN = 0.5
"""... from no later than this share of the lags on."""

GROWN = 10.0
"""It explodes where it grows to this many times of what it was a step back."""

LEAST_LAGS = 5
"""Fewer lags tell nothing,"""

ENOUGH_LAGS = 20
"""and fewer than these not whether a gradient that has faded has faded early."""

DEAD = 0.1
"""So many dead units are worth a word,"""

SATURATED = 0.5
"""and so many saturated ones."""


class Verdict(NamedTuple):
    """What :attr:`bptt.GradientFlow.verdict` is."""

    kind: str
    """``"vanishing"``, ``"exploding"``, ``"healthy"``; ``"dead"``: nothing comes back over a single
    step; ``"undetermined"``: too few lags were followed."""
    words: str
    """The same in sentences, with dead and saturated units."""


class Profile(NamedTuple):
    """How the gradient changes on its way, relative to what it is one step back."""

    relative: NDArray[np.float64]
    """At lags 0, 1, ..., [lags]; 1 at lag 1 and NaN at lag 0, which comes through the output."""
    faded: int | None
    """The lag from which on it stays below a hundredth; None: it does not."""
    largest: float
    """What it grows to at most in a tenth of the losses, from lag 1 on; inf where one is not
    finite."""
    largest_at: int
    """The lag of that."""


def judge(flow: GradientFlow) -> Verdict:
    """Judge a gradient's way back.

    All of the state is taken together (an LSTM's h and c, all layers), and all losses and
    sequences; each lag is compared with one step back in the same losses, since the larger a lag,
    the fewer losses have it. Relative to one step back, the gradient is

    - **exploding**, if it grows to ten times in a tenth of the losses, or is not finite;
    - **vanishing**, if it falls below a hundredth, for good, within the first half of the lags that
      were followed: what was followed says how far it should have come;
    - **undetermined**, if it does so later, and fewer than 20 lags were followed, or if fewer than
      5 were;
    - **healthy** otherwise.

    So a gradient that is gone after 8 steps is undetermined in a sequence of 16 steps, of which 15
    lie before the last, and vanishes in one of 17, whose first half has 8.

    Args:
        flow: what :func:`bptt.gradient_flow` found.

    >>> import torch, bptt
    >>> flow = bptt.gradient_flow(bptt.RNN(4, 32), torch.randn(40, 8, 4))
    >>> flow.verdict.kind
    'vanishing'
    >>> rnn = bptt.init.orthogonal_(bptt.RNN(4, 32))
    >>> bptt.gradient_flow(rnn, 0.1 * torch.randn(40, 8, 4)).verdict.kind
    'healthy'
    """
    kind, words = _kind(flow)
    return Verdict(kind, " ".join([words, *_of_units(flow.dynamics or ())]))


def _kind(flow: GradientFlow) -> tuple[str, str]:
    found, last = profile(flow), flow.lags - 1
    if not bool(flow.losses[0].isfinite().all()):
        return "undetermined", (
            f"Undetermined: the loss of step {flow.times[0]} is not a finite number itself; look "
            "at the inputs, and at the weights."
        )
    if not math.isfinite(found.largest):
        return "exploding", (
            f"The gradient explodes: it is not a finite number any more {found.largest_at} "
            f"step{'s' if found.largest_at != 1 else ''} back."
        )
    if flow.lags < LEAST_LAGS:
        return "undetermined", (
            f"Undetermined: {flow.lags} lag{'s were' if flow.lags != 1 else ' was'} followed, and "
            f"{LEAST_LAGS} at least are needed to see whether a gradient lasts."
        )
    if found.largest == 0:
        return "dead", "Dead: no gradient at all comes back over a step."
    if found.largest >= GROWN:
        return "exploding", (
            f"The gradient explodes: {found.largest_at} steps back it is {found.largest:.3g} times "
            "as large as one step back"
            + (", in a tenth of the losses." if np.nanmax(found.relative) < GROWN else ".")
        )
    if found.faded is not None and found.faded <= WITHIN * last:
        return "vanishing", (
            f"The gradient vanishes: from {found.faded} steps back on, which is in the first half "
            f"of the {last} followed, it is less than {_percent(FADED)} of what it is one step "
            "back."
        )
    if found.faded is not None and last < ENOUGH_LAGS:
        return "undetermined", (
            f"Undetermined: from {found.faded} steps back on the gradient is less than "
            f"{_percent(FADED)} of what it is one step back. That is in the second half of the "
            f"{last} that were followed: not early enough to call it vanishing, and fewer than "
            f"{ENOUGH_LAGS} are too few to call it healthy. "
            + _what_decides(flow, min(math.ceil(found.faded / WITHIN), ENOUGH_LAGS))
        )
    if found.faded is not None:
        return "healthy", (
            f"Healthy: {last} steps were followed, and only from {found.faded} steps back on the "
            f"gradient is less than {_percent(FADED)} of what it is one step back."
        )
    left = found.relative[last]
    return "healthy", (
        f"Healthy: {last} steps back, the longest way followed, the gradient is "
        f"{_percent(left)} of what it is one step back."
    )


def _what_decides(flow: GradientFlow, back: int) -> str:
    """Say how many steps have to be followed back for this gradient to get a verdict."""
    needs = [f"a sequence of {back + 1} steps"] if flow.steps <= back else []
    needs += [f"lags={back + 1}"] if flow.lags < flow.steps else []
    return f"To decide, follow {back} steps back: {' and '.join(needs)}."


def _of_units(layers: tuple[Dynamics, ...]) -> list[str]:
    """Describe which layers have dead or saturated units."""
    words = []
    for d in layers:
        of = f" in layer {d.layer + 1}" if len(layers) > 1 else ""
        if d.dead >= DEAD:
            words.append(f"{_percent(d.dead)} of the units{of} are dead: they never change.")
        if is_saturated(d):
            assert d.saturated is not None
            words.append(f"{_percent(d.saturated)} of the units' values{of} are saturated.")
    return words


def is_saturated(layer: Dynamics) -> bool:
    """Whether half of the values of an RNN's tanh or sigmoid are where no gradient passes.

    A ReLU that is off half of the time is what it should be, and so is a gate at its end: that
    is how it keeps something.
    """
    phi = None if layer.cell is None else layer.cell.phi
    is_smooth = phi is not None and not phi.rectifies
    return is_smooth and layer.saturated is not None and layer.saturated >= SATURATED


def profile(flow: GradientFlow) -> Profile:
    """Follow the gradient from lag to lag: the norm at lag k over that at lag 1.

    Each is summed over all losses and sequences that have lag k. So a loss counts as much as its
    gradient is large, and what is said of a lag is true of the losses that have it.
    """
    first, here, grown = _sums(flow)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = np.where(here == 0, 0.0, here / first)
    relative[0] = np.nan
    known = relative[1:]
    if not np.isfinite(known).all() or not np.isfinite(here).all():
        bad = ~np.isfinite(here) | ~np.isfinite(np.append(1.0, known))
        return Profile(relative, None, math.inf, int(np.argmax(bad)))
    if not len(known):
        return Profile(relative, None, 0.0, 0)
    (last,) = np.nonzero(known >= FADED)
    faded = int(last[-1]) + 2 if len(last) else 1
    at = int(np.argmax(grown[1:]))
    return Profile(relative, faded if faded < flow.lags else None, float(grown[1 + at]), at + 1)


def _sums(flow: GradientFlow) -> NDArray[np.float64]:
    """Sums of the norms at lag 1 and at lag k, over the losses that have lag k; and what a tenth of
    the losses have grown to there, or more: [3, lags].
    """
    norms = squares(flow).sqrt().cpu().numpy()  # [B, N, T]
    times, found = np.array(flow.times), np.zeros((3, flow.lags))
    for k in range(1, flow.lags):
        (n,) = np.nonzero(times >= k)
        here, first = norms[:, n, times[n] - k], norms[:, n, times[n] - 1]
        found[:2, k] = first.sum(), here.sum()
        with np.errstate(invalid="ignore", over="ignore"):  # of two that are infinite
            own = (here / np.where(first > 0, first, np.nan))[first > 0]
        found[2, k] = np.quantile(own, 0.9, method="higher") if len(own) else 0.0
    return found


def squares(flow: GradientFlow) -> Float[Tensor, "batch losses time"]:
    """Take all tensors of the state together: the squares of the norms, [B, N, T] float64.

    What is not defined, as a cell at lag 0, or was not followed counts as 0; a NaN at a lag that
    was followed came of numbers that were not finite, and is infinite.
    """
    lag = torch.tensor(flow.times).unsqueeze(1) - torch.arange(flow.steps)
    followed = (lag >= 1) & (lag < flow.lags)
    total = torch.zeros_like(flow.states[0].norms, dtype=torch.float64)
    for state in flow.states:
        norms = state.norms.double()
        nothing = torch.where(followed.to(norms.device), math.inf, 0.0).double()
        total += torch.where(norms.isnan(), nothing, norms).square()
    return total


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
