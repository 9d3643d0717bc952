"""Saturated and dead units, on layers made for it, and the record that gathers all of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from flow.foreign import Linear, Named
from torch import nn

import bptt
from bptt._src.flow.activity import activity
from bptt._src.flow.dynamics import measure
from bptt._src.flow.trajectory import follow


def elman(phi, weights, biases, x):
    """A layer without recurrence, h = φ(w x + b), over inputs of one number."""
    rnn = bptt.RNN(1, len(weights), nonlinearity=phi, dtype=torch.float64)
    with torch.no_grad():
        for p in rnn.parameters():
            p.zero_()
        rnn.weight_ih_l0[:, 0] = torch.tensor(weights, dtype=torch.float64)
        rnn.bias_ih_l0[:] = torch.tensor(biases, dtype=torch.float64)
    return follow(rnn, torch.tensor(x, dtype=torch.float64).view(-1, 1, 1))[0]


def test_tanh():
    """φ' < 0.1 where |h| > √0.9, that is |a| > artanh √0.9 = 1.8184."""
    edge = math.atanh(math.sqrt(0.9))
    found = activity(elman("tanh", [1.0, -1.0], [0.0, 0.0], [edge - 1e-6, edge + 1e-6, 0.0, 5.0]))
    assert found.saturated == pytest.approx(4 / 8)
    assert (found.dead, found.gates) == (0.0, None)


def test_sigmoid():
    """h (1 - h) < 0.025 where |a| > log((1 + √0.9) / (1 - √0.9)), twice the value of tanh."""
    edge = 2 * math.atanh(math.sqrt(0.9))
    found = activity(elman("sigmoid", [1.0], [0.0], [edge - 1e-6, edge + 1e-6, -edge - 1e-6, 0.0]))
    assert found.saturated == pytest.approx(2 / 4)


def test_relu():
    found = activity(elman("relu", [1.0, 1.0, -1.0, 0.0], [0, -9, 5, 1], [1.0, 2.0, 3.0, -1.0]))
    assert found.saturated == pytest.approx((1 + 4 + 0 + 0) / 16)
    assert found.dead == pytest.approx(2 / 4)  # one that is never on, one that never changes


def test_a_unit_that_never_changes_is_dead_whatever_its_value():
    found = activity(elman("tanh", [1.0, 0.0], [0.0, 0.3], [1.0, 2.0]))
    assert found.dead == 0.5
    assert activity(elman("tanh", [1.0, 0.0], [0.0, 0.3], [1.0])).dead == 0.0  # one step


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gates_beside_the_cells_equations(kind):
    module = getattr(bptt, kind)(2, 5, dtype=torch.float64)
    with torch.no_grad():
        module.weight_ih_l0 *= 5
        module.weight_hh_l0 *= 5
    x = 2 * torch.randn(20, 3, 2, dtype=torch.float64)
    (layer,) = follow(module, x)
    found = activity(layer)
    names = {"GRU": ["reset", "update"], "LSTM": ["input", "forget", None, "output"]}[kind]
    shares = []
    for n, name in enumerate(names):
        if name is None:
            continue
        rows = slice(5 * n, 5 * n + 5)
        values = []
        for t in range(20):
            a = x[t] @ module.weight_ih_l0[rows].T + module.bias_ih_l0[rows]
            a = a + layer.before[t, :, :5] @ module.weight_hh_l0[rows].T + module.bias_hh_l0[rows]
            values.append(1 / (1 + (-a).exp()))
        values = torch.stack(values).detach()
        low, high = (values < 0.05).double().mean(), (values > 0.95).double().mean()
        assert 0.02 < low < 0.9
        assert 0.02 < high < 0.9
        assert found.gates[name] == pytest.approx((float(low), float(high)))
        shares.append(float(low + high))
    assert found.saturated == pytest.approx(sum(shares) / len(shares))


def test_chrono_is_seen_in_the_gates():
    lstm = bptt.init.chrono_(bptt.LSTM(2, 200), 100)
    found = activity(follow(lstm, torch.randn(10, 2, 2))[0])
    assert found.gates["forget"][1] > 0.7  # kept for 20 steps or longer: 4/5 of them
    assert found.gates["input"][0] > 0.7
    assert found.gates["output"] == (0.0, 0.0)


# ------------------------------------------------------------------------------- the record

KEYS = {
    "layer",
    "mode",
    "jacobian_norms",
    "bound",
    "weight_norm",
    "slope",
    "spectral_radius",
    "largest_singular_value",
    "leak_steps",
    "saturated",
    "dead",
    "gates",
    "lyapunov",
    "lyapunov_errors",
}


def test_the_record_of_an_rnn():
    rnn = bptt.RNN(2, 6, num_layers=2, nonlinearity="sigmoid", dtype=torch.float64)
    x, h = torch.randn(30, 6, 2).double(), torch.randn(2, 6, 6).double()
    layers = measure(rnn, x, h)
    assert [d.layer for d in layers] == [0, 1]
    for n, d in enumerate(layers):
        w = getattr(rnn, f"weight_hh_l{n}").detach()
        assert d.weight_norm == pytest.approx(float(torch.linalg.svdvals(w)[0]))
        assert d.spectral_radius == pytest.approx(float(torch.linalg.eigvals(w).abs().max()))
        assert d.mode == "RNN_SIGMOID"
        assert (d.slope, d.bound) == (0.25, pytest.approx(d.weight_norm / 4))
        assert d.jacobian_norms.shape == (4, 30)  # of the first four sequences
        assert (d.jacobian_norms <= d.bound).all()
        assert d.lyapunov.shape == (4,)
        found = json.loads(json.dumps(d.to_dict(), allow_nan=False))
        assert set(found) == KEYS
        norms = torch.tensor(found["jacobian_norms"]).double()
        torch.testing.assert_close(norms, d.jacobian_norms.mean(0), rtol=1e-4, atol=0)
    (one,) = measure(bptt.RNN(2, 6, nonlinearity="sigmoid").double(), x[:1], h[:1])
    assert one.lyapunov is None
    assert one.jacobian_norms.shape == (4, 1)


def test_the_record_of_gated_and_foreign_modules():
    (d,) = measure(bptt.LSTM(2, 5), torch.randn(20, 2, 2))
    assert (d.bound, d.slope, d.spectral_radius, d.alpha) == (None, None, None, None)
    assert set(d.gates) == {"input", "forget", "output"}
    assert set(d.to_dict()) == KEYS
    (d,) = measure(Named(), torch.randn(20, 3, 2).double())
    found = d.to_dict()
    assert found["jacobian_norms"][0] is None  # it began by itself
    assert all(isinstance(v, float) for v in found["jacobian_norms"][1:])
    unknown = ("mode", "bound", "weight_norm", "slope", "spectral_radius", "saturated", "gates")
    assert all(found[name] is None for name in unknown)
    assert found["dead"] == 0.0


@pytest.mark.parametrize("learnt", [False, True])
def test_the_record_of_a_rate_network(learnt):
    module = bptt.Recurrent(bptt.cells.make_rate(None if learnt else 0.1), 2, 5)
    if learnt:
        bptt.init.chrono_(module, 30)
    (d,) = measure(module, torch.randn(20, 2, 2))
    W = module.weight_hh_l0.detach()
    assert d.spectral_radius == pytest.approx(float(torch.linalg.eigvals(W).abs().max()))
    times = 1 / module.weight_units_l0[0].detach().sigmoid() if learnt else torch.tensor([10.0])
    torch.testing.assert_close(1 / d.alpha, times.double(), rtol=1e-5, atol=0)
    found = d.to_dict()["leak_steps"]
    assert found == [
        pytest.approx(float(times.min()), 1e-4),
        pytest.approx(float(times.max()), 1e-4),
    ]


def test_large_layers_are_looked_at_in_fewer_sequences(monkeypatch):
    """Derivatives only; the activity is that of all."""
    module, x = bptt.RNN(1, 5), torch.randn(10, 6, 1)
    with torch.no_grad():
        module.weight_ih_l0.fill_(100.0)
    x[:, 0] = 0.0  # the first sequence alone is far from saturation
    (all_,) = measure(module, x)
    monkeypatch.setattr("bptt._src.flow.dynamics.NUMBERS", 10 * 5 * 2)
    (few,) = measure(module, x)
    assert (few.jacobian_norms.shape, all_.jacobian_norms.shape) == ((2, 10), (4, 10))
    torch.testing.assert_close(few.jacobian_norms, all_.jacobian_norms[:2])
    monkeypatch.setattr("bptt._src.flow.dynamics.NUMBERS", 1)
    (one,) = measure(module, x)
    assert one.jacobian_norms.shape == (1, 10)
    assert one.saturated == few.saturated == all_.saturated > 0.5


def test_infinite_exponents_are_null():
    rnn = bptt.RNN(1, 3, nonlinearity="relu")
    nn.init.constant_(rnn.bias_ih_l0, -100)
    (d,) = measure(rnn, torch.ones(10, 1, 1))
    assert (d.dead, d.saturated) == (1.0, 1.0)
    assert d.to_dict()["lyapunov"] == [None] * 3


def test_arguments_are_handed_on():
    module, x = Linear(torch.eye(3).double()), torch.zeros(3, 2, 1).double()
    (d,) = measure(lambda x, h: module(x, h), x, torch.ones(2, 3).double(), state_batch_dim=0)
    torch.testing.assert_close(d.jacobian_norms, torch.ones(2, 3).double())
    rnn, resets = bptt.RNN(1, 4), torch.tensor([False] * 5 + [True] * 5)
    x = torch.full((10, 1, 1), 2.0)
    with_, without = (measure(rnn, x, resets=r)[0] for r in (resets, None))
    assert not torch.allclose(with_.jacobian_norms, without.jacobian_norms)
