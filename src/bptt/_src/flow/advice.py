"""What to do about a gradient that does not come far, or too far: sentences with their reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bptt._src.flow.verdict import DEAD, FADED, LEAST_LAGS, Profile, is_saturated, profile

if TYPE_CHECKING:
    from bptt._src.flow.dynamics import Dynamics
    from bptt._src.flow.flow import GradientFlow
    from bptt._src.flow.truncation import Suggestion
    from bptt.cells import Keeping, Leak, Nonlinearity

BIAS = 0.1
"""The relative bias for which a reach is suggested."""

PASCANU = "R. Pascanu, T. Mikolov and Y. Bengio, ICML 2013, arXiv:1211.5063"
SAXE = "A. Saxe et al., arXiv:1312.6120; M. Henaff et al., arXiv:1602.06662"
LE = "Q. V. Le, N. Jaitly and G. E. Hinton, arXiv:1504.00941"
CHRONO = "C. Tallec and Y. Ollivier, ICLR 2018, arXiv:1804.11188"
JOZEFOWICZ = "R. Jozefowicz, W. Zaremba and I. Sutskever, ICML 2015"
LSTM = "S. Hochreiter and J. Schmidhuber, Neural Computation 9 (1997)"
BENGIO = "Y. Bengio, arXiv:1206.5533, section 3.1.1"
JAEGER = "H. Jaeger, GMD report 148 (2001)"
MAAS = "A. Maas, A. Hannun and A. Ng, ICML 2013 workshop"
GLOROT = "X. Glorot and Y. Bengio, AISTATS 2010"
AICHER = "C. Aicher, N. J. Foti and E. B. Fox, UAI 2019, arXiv:1905.07473"


OF_DALE = "or under Dale's law bptt.cells.dales_law(module, radius=1)"


class Advice(NamedTuple):
    """One thing to do."""

    text: str
    """What, by which function, and why, in a sentence or two."""
    figures: dict[str, float]
    """The measured numbers that led to it, by name."""
    source: str
    """Where it comes from."""


def advise(flow: GradientFlow) -> tuple[Advice, ...]:
    """Return advice on what was found, the most urgent first.

    Args:
        flow: what :func:`bptt.gradient_flow` found, best with its dynamics.

    >>> import torch, bptt
    >>> flow = bptt.gradient_flow(bptt.LSTM(4, 32), torch.randn(60, 8, 4))
    >>> "bptt.init.chrono_(module, longest=59)" in flow.advice[0].text
    True
    >>> flow.advice[0].source
    'C. Tallec and Y. Ollivier, ICLR 2018, arXiv:1804.11188'
    """
    found, layers = profile(flow), flow.dynamics or ()
    advice = [*_about_units(layers)]  # first: they may be why nothing comes through
    if flow.verdict.kind == "exploding":
        advice += _against_explosion(found, layers, flow.gradient_norm)
    elif flow.verdict.kind == "vanishing":
        advice += _against_vanishing(found, flow)
    if flow.verdict.kind not in ("exploding", "dead") and flow.lags >= LEAST_LAGS:
        advice += _about_reach(flow)
    return tuple(advice)


def _against_explosion(
    found: Profile, layers: tuple[Dynamics, ...], usual: float | None
) -> Iterator[Advice]:
    at = "" if usual is None else f" at about {usual:.2g}, its median in training"
    where = "; bptt.FlowMeter reports it" if usual is None else ""
    yield Advice(
        f"Clip the gradient's norm{at}: torch.nn.utils.clip_grad_norm_, or --clip of bptt train. "
        "Values from half to ten times the norm that is usual over many updates are known to work"
        f"{where}.",
        {
            "growth": found.largest,
            "lag": found.largest_at,
            **({} if usual is None else {"gradient_norm": usual}),
        },
        PASCANU,
    )
    wide = [d for d in layers if d.spectral_radius is not None and d.spectral_radius > 1]
    if wide:
        d = max(wide, key=lambda d: d.spectral_radius or 0.0)
        is_leaky = d.cell is not None and d.cell.leak is not None
        other = OF_DALE if is_leaky else "or bptt.init.orthogonal_(module)"
        yield Advice(
            f"Scale the recurrent weights down: bptt.init.spectral_radius_(module, 1), {other}. "
            f"Their spectral radius is {d.spectral_radius:.3g}, and above 1 small changes of the "
            "state may grow from step to step.",
            _figures(d, "spectral_radius", "weight_norm", "bound"),
            f"{JAEGER}; {SAXE}",
        )
    yield Advice(
        "Take a smaller learning rate, a third of it, if the loss diverges; and begin again from "
        "weights of before.",
        {"growth": found.largest},
        BENGIO,
    )


def _against_vanishing(found: Profile, flow: GradientFlow) -> Iterator[Advice]:
    lags, layers = flow.lags - 1, [d for d in flow.dynamics or () if d.cell is not None]
    gone, found_cells = found.faded or lags, flow.kinds
    for cell in dict.fromkeys([d.cell for d in layers if d.cell] if layers else found_cells):
        of_cell = [d for d in layers if d.cell is cell]
        if cell.keeping is not None:
            yield from _open_gates(gone, lags, cell.keeping)
        elif cell.leak is not None:
            yield from _about_leak(cell.leak, of_cell, gone, lags)
        elif of_cell and cell.phi is not None:
            yield from _better_weights(of_cell[0], cell.phi, gone, lags)
        elif of_cell:
            yield from _otherwise(gone, lags)
    if not layers and not any(cell.keeping or cell.leak for cell in found_cells):
        where = "" if found_cells else ", if it has none"
        yield Advice(
            f"Use cells with gates{where}: bptt.LSTM or bptt.GRU, with bptt.init.chrono_(module, "
            f"longest={lags}). {_of_longest(lags)} Now the gradient is gone within {gone} steps.",
            {"gone_within": gone, "longest": lags},
            f"{LSTM}; {CHRONO}",
        )


def _of_longest(lags: int) -> str:
    """Say where the number in ``longest=`` comes from."""
    return f"Give the longest lag that your task needs: {lags} is only the longest followed here."


def _open_gates(gone: int, lags: int, keeping: Keeping) -> Iterator[Advice]:
    bias, gates = math.log(max(2, lags) - 1), f"{keeping.gate} gates"
    opens = "open" if keeping.sign > 0 else "close"
    yield Advice(
        f"Spread the {gates} over time scales up to the longest dependency: "
        f"bptt.init.chrono_(module, longest={lags}), before training. {_of_longest(lags)} Now the "
        f"gradient is gone within {gone} steps.",
        {"gone_within": gone, "longest": lags},
        CHRONO,
    )
    yield Advice(
        f"Or {opens} all {gates} alike: bptt.init.forget_bias_(module, 1) is the usual start; a "
        f"bias of log({lags} - 1) = {bias:.2g} would keep the state for about {lags} steps.",
        {"bias": bias, "lags": lags},
        JOZEFOWICZ,
    )


def _about_leak(leak: Leak, of_cell: list[Dynamics], gone: int, lags: int) -> Iterator[Advice]:
    """Advise a slower leak, unless the leak alone would leave more of the gradient than is left."""
    alpha = None if leak.alpha is None else torch.tensor([leak.alpha], dtype=torch.float64)
    known = [d.alpha.cpu() for d in of_cell if d.alpha is not None]
    alpha = torch.cat(known) if known else alpha
    left = 0.0 if alpha is None else float((1 - alpha).pow(2 * (gone - 1)).mean().sqrt())
    d = max(of_cell, key=lambda d: d.spectral_radius or 0.0, default=None)
    is_wide = d is not None and d.spectral_radius is not None and d.spectral_radius > 1
    if left < FADED:
        yield _slower_leak(leak, alpha, gone, lags)
    elif d is not None and is_wide:
        yield Advice(
            f"Scale the recurrent weights down: bptt.init.spectral_radius_(module, 1), {OF_DALE}. "
            f"They make the gradient vanish: {gone} steps back, where it is gone, the leak alone "
            f"would leave {100 * left:.3g} % of it. Their spectral radius is "
            f"{d.spectral_radius:.3g}.",
            {"gone_within": gone, "left": left, **_figures(d, "spectral_radius")},
            f"{CHRONO}; {JAEGER}",
        )
    yield _penalty(gone, "Or add" if left < FADED or is_wide else "Add")


def _slower_leak(leak: Leak, alpha: Tensor | None, gone: int, lags: int) -> Advice:
    now, steps = f"Now the gradient is gone within {gone} steps.", "1/alpha"
    figures: dict[str, float] = {"gone_within": gone}
    if leak.alpha is not None:
        text = f"The leak alone forgets in 1/alpha = {1 / leak.alpha:.3g} steps: {leak.longer}."
        return Advice(f"{text} {now}", figures | {"leak_steps": 1 / leak.alpha}, CHRONO)
    if alpha is not None:
        least, most = float(1 / alpha.amax()), float(1 / alpha.amin())
        steps += f" = {least:.3g} to {most:.3g}"
        figures |= {"shortest_leak_steps": least, "longest_leak_steps": most}
    return Advice(
        f"The leaks alone forget in {steps} steps: smaller ones (longer tau) reach further. Spread "
        "them over time scales up to the longest dependency: bptt.init.chrono_(module, "
        f"longest={lags}), before training. {_of_longest(lags)} {now}",
        figures | {"longest": lags},
        CHRONO,
    )


def _better_weights(d: Dynamics, phi: Nonlinearity, gone: int, lags: int) -> Iterator[Advice]:
    if phi.slope < 1:
        yield Advice(
            f'Use tanh or ReLU in place of {phi.name}: bptt.RNN(..., nonlinearity="tanh"). A '
            f"{phi.name}'s derivative is {Fraction(phi.slope).limit_denominator(100)} at most, "
            "so with the recurrent weights' largest singular "
            f"value, {d.weight_norm:.3g}, a step keeps {d.bound:.3g} of the gradient at most.",
            _figures(d, "weight_norm", "slope", "bound"),
            PASCANU,
        )
    elif phi.rectifies:
        yield Advice(
            "Start from the identity: bptt.init.identity_(module), before training. A unit that is "
            "on then hands the gradient on unchanged.",
            _figures(d, "spectral_radius", "weight_norm", "saturated"),
            LE,
        )
    elif d.spectral_radius is not None and not _is_orthogonal(d) and not is_saturated(d):
        certain = d.bound is not None and d.bound < 1
        yield Advice(
            "Make the recurrent weights orthogonal, so that they keep the gradient's length: "
            "bptt.init.orthogonal_(module), before training. Their spectral radius is "
            f"{d.spectral_radius:.3g}"
            + (f", and no step keeps more than {d.bound:.3g} of the gradient." if certain else "."),
            _figures(d, "spectral_radius", "weight_norm", "bound"),
            SAXE,
        )
    yield from _otherwise(gone, lags)


def _otherwise(gone: int, lags: int) -> Iterator[Advice]:
    yield Advice(
        "Use cells with gates, which keep a gradient where it is wanted: bptt.LSTM or bptt.GRU, "
        f"with bptt.init.chrono_(module, longest={lags}). {_of_longest(lags)} Now the gradient is "
        f"gone within {gone} steps.",
        {"gone_within": gone, "longest": lags},
        f"{LSTM}; {CHRONO}",
    )
    yield _penalty(gone, "Or add")


def _penalty(gone: int, add: str) -> Advice:
    return Advice(
        f"{add} bptt.vanishing_penalty to the loss, which asks each step to keep the gradient's "
        "length.",
        {"gone_within": gone},
        PASCANU,
    )


def _is_orthogonal(d: Dynamics) -> bool:
    """Whether all singular values are about 1: the largest, and the largest eigenvalue, are."""
    return all(abs((v or 0.0) - 1) < 0.05 for v in (d.weight_norm, d.spectral_radius))


def _about_units(layers: tuple[Dynamics, ...]) -> Iterator[Advice]:
    for d in layers:
        if d.dead >= DEAD and d.cell and d.cell.phi and d.cell.phi.rectifies:
            yield Advice(
                f"Wake the dead units of layer {d.layer + 1}: take a smaller learning rate, biases "
                "above 0, or bptt.init.identity_(module) before training. A ReLU that is never on "
                "gets no gradient.",
                _figures(d, "dead"),
                f"{MAAS}; {LE}",
            )
        elif is_saturated(d):
            yield Advice(
                f"Bring the units of layer {d.layer + 1} back from saturation: scale the inputs to "
                "about unit variance, take smaller weights or a smaller learning rate. Where a "
                "unit is saturated hardly any gradient passes.",
                _figures(d, "saturated"),
                GLOROT,
            )


def _about_reach(flow: GradientFlow) -> Iterator[Advice]:
    found, last = flow.suggestion(BIAS, flow.window), flow.lags - 1
    if not flow.settles():
        yield Advice(
            f"Look further back, and give the credit a longer reach: the gradient goes on beyond "
            f"the {last} steps that were followed. Follow longer sequences (and more lags=).",
            {"lags": flow.lags, "horizon": flow.horizon() or last},
            AICHER,
        )
    if found.reach is None or found.every is None:
        return
    credit = f"bptt.Truncated(every={found.every}, reach={found.every + found.reach})"
    if not flow.excerpt and flow.steps <= found.every + found.reach:
        return  # that is all of it
    yield Advice(
        (
            f"If the sequences have to be cut, credit={credit}: "
            if flow.window is None
            else f"With windows of {found.every} steps, credit={credit}: "
        )
        + _promise(found)
        + " That is for what the network uses now; what it is to learn may take more."
        + (
            ""
            if flow.window is not None
            else f" Where the window is fixed at W steps: every=W, reach=W+{found.reach}."
        ),
        {
            "bias": BIAS,
            "reach": found.reach,
            **({} if found.measured is None else {"measured": found.measured}),
        },
        AICHER,
    )


def _promise(found: Suggestion) -> str:
    """Describe what is known of a suggestion's bias, and no more."""
    if found.measured is None:
        return (
            f"an estimate for a relative bias of {100 * BIAS:.0f} %, not measured ({found.why}); "
            "bptt.estimator_error measures it."
        )
    bias = f"{100 * found.measured:.2g} %"
    return f"measured on these sequences, the gradient's relative bias is {bias}."


def _figures(d: Dynamics, *names: str) -> dict[str, float]:
    found = {name: getattr(d, name) for name in names}
    return {"layer": d.layer, **{k: float(v) for k, v in found.items() if v is not None}}
