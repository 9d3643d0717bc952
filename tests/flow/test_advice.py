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
