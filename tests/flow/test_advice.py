"""The advice names what exists, with the figures that led to it, for the network it is about."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from flow.made import flow_of
from torch import nn

import bptt
from bptt import gradient_flow, init
from bptt._src.flow.advice import advise
from bptt._src.flow.dynamics import measure
from bptt._src.flow.verdict import profile


def advice_for(module, scale=1.0, steps=40):
    x = scale * torch.randn(steps, 4, 3)
    flow = gradient_flow(module, x, attribution=False, dynamics=False)
    return advise(dataclasses.replace(flow, dynamics=measure(module, x)))


def texts(advice):
    return " ".join(a.text for a in advice)


def wide(radius=1.6):
    rnn = bptt.RNN(3, 100)
    nn.init.normal_(rnn.weight_hh_l0, 0, 0.1)
    return init.spectral_radius_(rnn, radius)


def every_kind():
    dead = bptt.RNN(3, 20, nonlinearity="relu")
    with torch.no_grad():
        dead.bias_ih_l0[:10] = -100
    saturated = bptt.RNN(3, 20)
    with torch.no_grad():
        saturated.weight_ih_l0 *= 100
    return {
        "tanh": bptt.RNN(3, 20),
        "sigmoid": bptt.RNN(3, 20, nonlinearity="sigmoid"),
        "relu": bptt.RNN(3, 20, nonlinearity="relu"),
        "lstm": bptt.LSTM(3, 20),
        "gru": bptt.GRU(3, 20),
        "long": init.chrono_(bptt.LSTM(3, 20), 40),
        "exploding": wide(),
        "dead": dead,
        "saturated": saturated,
    }


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(0)
    return {
        name: advice_for(m, 0.1 if name == "exploding" else 1.0) for name, m in every_kind().items()
    }


def test_all_of_it_is_well_formed_and_names_what_exists(given):
    for advice in given.values():
        assert advice
        for a in advice:
            assert a.text[0].isupper()
            assert a.text.endswith(".")
            assert a.source
            assert a.figures
            assert all(math.isfinite(v) for v in a.figures.values())
            for name in re.findall(r"\bbptt((?:\.\w+)+)", a.text):
                found = bptt
                for part in name[1:].split("."):
                    found = getattr(found, part)


def test_each_network_gets_its_own(given):
    found = {name: texts(advice) for name, advice in given.items()}
    for name in ("lstm", "gru"):
        assert "bptt.init.chrono_(module, longest=39)" in found[name]
        assert "bptt.init.forget_bias_" in found[name]
        assert "orthogonal_" not in found[name]
    assert "forget gates" in found["lstm"]
    assert "update gates" in found["gru"]
    assert "bptt.init.orthogonal_" in found["tanh"]
    assert "bptt.LSTM or bptt.GRU" in found["tanh"]
    assert "bptt.vanishing_penalty" in found["tanh"]
    assert 'nonlinearity="tanh"' in found["sigmoid"]
    assert "bptt.init.identity_" in found["relu"]
    assert "bptt.init.chrono_" not in found["long"]
    for name in ("tanh", "relu", "lstm", "gru", "long"):
        assert "Clip" not in found[name]


LEAKY = {
    "fixed": (bptt.cells.RATE, "in 1/alpha = 5 steps: a smaller alpha (longer tau) reaches"),
    "smooth": (bptt.cells.make_rate(0.3, torch.tanh), "in 1/alpha = 3.33 steps: a smaller alpha"),
    "spiking": (bptt.cells.make_lif(beta=0.7), "in 1/alpha = 3.33 steps: a larger beta, which is"),
    "learnt": (bptt.cells.make_rate(None), "bptt.init.chrono_(module, longest=99), before"),
}


def flow_of_leaks(cell, change=lambda m: m, dynamics=True):
    module = change(bptt.Recurrent(cell, 3, 30))
    x = torch.randn(100, 4, 3)
    return module, gradient_flow(module, x, times=[99], attribution=False, dynamics=dynamics)


@pytest.mark.parametrize("dynamics", [True, False])
@pytest.mark.parametrize("name", LEAKY)
def test_where_the_leak_forgets_it_is_named(name, dynamics):
    torch.manual_seed(0)
    cell, words = LEAKY[name]
    _, flow = flow_of_leaks(cell, dynamics=dynamics)
    assert flow.verdict.kind == "vanishing"
    first = flow.advice[0]
    assert words in first.text
    assert "leak" in first.text
    assert "bptt.vanishing_penalty" in flow.advice[1].text
    assert "LSTM" not in texts(flow.advice)
    if name == "fixed":
        assert first.figures["leak_steps"] == 5
        assert f"gone within {profile(flow).faded} steps" in first.text


def test_of_leaks_that_are_learnt_the_advice_has_the_shortest_and_the_longest():
    torch.manual_seed(0)
    module, flow = flow_of_leaks(bptt.cells.make_rate(None))
    times = 1 / module.weight_units_l0[0].detach().sigmoid()
    first = flow.advice[0]
    assert f"in 1/alpha = {times.min():.3g} to {times.max():.3g} steps" in first.text
    assert first.figures["longest_leak_steps"] == pytest.approx(float(times.max()))
    assert first.figures["longest"] == 99


@pytest.mark.parametrize("name", ["fixed", "learnt"])
def test_who_follows_the_advice_on_a_leak_is_better_off(name):
    torch.manual_seed(0)
    _, before = flow_of_leaks(LEAKY[name][0])
    if name == "fixed":
        _, after = flow_of_leaks(bptt.cells.make_rate(alpha=1 / 99))
    else:
        _, after = flow_of_leaks(LEAKY[name][0], lambda m: init.chrono_(m, longest=99))
    assert (before.verdict.kind, after.verdict.kind) == ("vanishing", "healthy")
    assert after.horizon() > 2 * before.horizon()


def test_a_leak_that_would_last_is_not_blamed():
    """Inhibition that is far too strong shrinks what a leak of 100 steps would keep."""
    torch.manual_seed(0)

    def inhibit(module):
        with torch.no_grad():
            module.weight_hh_l0.copy_(-30 * torch.eye(30))
            module.weight_ih_l0.mul_(0.1)
            module.bias_ih_l0.fill_(5.0)
        return module

    _, flow = flow_of_leaks(bptt.cells.make_rate(0.01), inhibit)
    assert flow.verdict.kind == "vanishing"
    first, *others = flow.advice
    assert "Scale the recurrent weights down" in first.text
    assert "bptt.cells.dales_law(module, radius=1)" in first.text
    assert first.figures["spectral_radius"] == pytest.approx(30)
    assert 0.1 < first.figures["left"] < 1
    assert "leak alone forgets" not in texts([first, *others])


def test_the_advice_says_where_the_longest_dependency_comes_from(given):
    for name in ("lstm", "gru", "tanh"):
        assert "task needs: 39 is only the longest followed here." in texts(given[name])
    assert "29 is only the longest followed" in texts(flow_of(lambda t, k, b: 0.5**k).advice)


def test_what_explodes(given):
    clip, scale, rate = given["exploding"]
    assert "clip_grad_norm_" in clip.text
    assert clip.figures["growth"] > 10
    assert "bptt.init.spectral_radius_(module, 1)" in scale.text
    assert scale.figures["spectral_radius"] == pytest.approx(1.6)
    assert "1.6" in scale.text
    assert "learning rate" in rate.text


def test_units(given):
    assert "Wake the dead units of layer 1" in texts(given["dead"])
    assert "back from saturation" in texts(given["saturated"])
    assert "dead" not in texts(given["tanh"])
    assert "saturation" not in texts(given["tanh"])


def test_the_figures_are_those_that_were_measured(given):
    (first, *_) = given["sigmoid"]
    assert first.figures["bound"] == pytest.approx(first.figures["weight_norm"] / 4)
    assert f"{first.figures['bound']:.3g}" in first.text


def test_weights_that_are_orthogonal_are_not_advised_to_be():
    rnn = init.orthogonal_(bptt.RNN(3, 20))
    text = texts(advice_for(rnn, 3.0))
    assert "bptt.LSTM" in text
    assert "orthogonal" not in text


def test_a_longer_reach_where_the_gradient_goes_on():
    flow = flow_of(lambda t, k, b: 1.0, steps=40, lags=20)
    assert "longer reach" in texts(flow.advice)
    assert "longer reach" not in texts(flow_of(lambda t, k, b: 0.5**k, steps=40).advice)


def test_a_reach_where_one_is_enough():
    flow = flow_of(lambda t, k, b: 0.5**k, steps=40)
    K = flow.suggest_truncation(0.1)
    assert f"bptt.Truncated(every={K}, reach={2 * K})" in texts(flow.advice)
    assert flow.advice[-1].figures == {"bias": 0.1, "reach": K}
    assert "an estimate for a relative bias of 10 %, not measured (the module" in texts(flow.advice)
    assert f"Where the window is fixed at W steps: every=W, reach=W+{K}" in texts(flow.advice)
    assert "Truncated" not in texts(flow_of(lambda t, k, b: 1.0, steps=40).advice)


def test_a_module_of_which_nothing_is_known_gets_advice_too():
    text = texts(flow_of(lambda t, k, b: 0.5**k).advice)
    assert "Use cells with gates, if it has none: bptt.LSTM or bptt.GRU" in text


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, state=None):
        return self.inner(x, state)


@pytest.mark.parametrize(
    ("module", "dynamics", "gates"),
    [
        (bptt.LSTM(3, 8), False, "forget gates"),
        (Wrapped(nn.LSTM(3, 8)), True, "forget gates"),
        (bptt.Stepwise(nn.LSTMCell(3, 8)), True, "forget gates"),
        (bptt.Stepwise(nn.GRUCell(3, 8)), False, "update gates"),
        (bptt.Stepwise(nn.RNNCell(3, 8)), True, None),
    ],
)
def test_the_cells_inside_a_module_count(module, dynamics, gates):
    flow = gradient_flow(module, torch.randn(60, 2, 3), dynamics=dynamics)
    text = texts(flow.advice)
    assert flow.verdict.kind == "vanishing"
    assert (f"Spread the {gates}" in text) == (gates is not None)
    assert ("Use cells with gates: " in text) == (gates is None)


def test_units_come_first_and_saturated_ones_need_no_orthogonal_weights(given):
    assert "back from saturation" in given["saturated"][0].text
    assert "orthogonal" not in texts(given["saturated"])
    assert "Wake the dead units" in given["dead"][0].text


def test_where_the_usual_norm_is_known_it_is_named():
    flow = flow_of(lambda t, k, b: 1.5**k)
    clip = dataclasses.replace(flow, gradient_norm=0.314).advice[0]
    assert "Clip the gradient's norm at about 0.31, its median in training" in clip.text
    assert clip.figures["gradient_norm"] == 0.314
    assert "bptt.FlowMeter reports it" in flow.advice[0].text


def test_too_little_to_say_anything():
    assert flow_of(lambda t, k, b: 0.5**k, steps=3).advice == ()
