"""Adaptive: its formulas against brute sums; the measured decay against autograd by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt import Adaptive
from bptt._src.credit.decay import fit_decay_rate
from bptt._src.pytree import leaves_of, map_tensors
from bptt.credit import Decay, measure_decay
from bptt.errors import CheckpointError, DivergedError


def decay_of(*norms, sums=None):
    """A decay of one sequence; its gradients all point the same way unless told otherwise."""
    norms = np.array(norms, float)
    return Decay(norms[None], np.cumsum(norms) if sums is None else np.array(sums, float))


def geometric(beta, lags, first=1.0):
    return decay_of(*(first * beta ** np.arange(lags)))


def observed(decay, *arguments, **options):
    credit = Adaptive(*arguments, **options)
    credit.observe(decay)
    return credit


# ------------------------------------------------------------------------------- the formulas


@given(
    st.floats(0.3, 0.97),
    st.floats(0.001, 0.8),
    st.integers(5, 60),
    st.none() | st.integers(1, 40),
    st.floats(1e-3, 1e3),
)
def test_for_geometric_norms_the_reach_is_the_least_whose_tail_is_tolerated(
    beta, tolerance, lags, tau, first
):
    """A reach of K leaves out φ_K + φ_{K+1} + ...; the gradient is at least what is left of it."""
    tau = None if tau is None or tau >= 60 else tau
    credit = observed(geometric(beta, lags, first), tolerance, start=2, least=1, most=60, tau=tau)
    phi = first * beta ** np.arange(5000.0)

    def tail(K):
        return phi[K:].sum()

    gradient = max(phi[:J].sum() - tail(J) for J in range(1, lags + 1))
    relative = [tail(K) / gradient if gradient > 0 else math.inf for K in range(lags + 1)]
    near = [K for K in range(1, lags + 1) if abs(relative[K] - tolerance) < 1e-9]
    enough = [K for K in range(1, lags + 1) if relative[K] < tolerance]
    expected = enough[0] if enough else 60
    assert credit.beta == pytest.approx(beta, rel=1e-6)
    assert credit.reach == expected or near
    if enough and not near:
        assert credit.relative_bias == pytest.approx(relative[expected], rel=1e-6)
    assert credit.measurements == 1


def test_the_bias_before_tau_is_the_measured_one_and_after_it_the_fitted():
    """Norms that rise at first: nothing before τ is assumed of them."""
    norms = [1, 5, 2, 7, 1, *(0.5**k for k in range(1, 8))]
    tau, beta = 5, 0.5
    rest = norms[tau] / (1 - beta)
    bias = [sum(norms[K:tau]) + rest for K in range(tau)]
    bias += [rest * beta ** (K - tau) for K in range(tau, len(norms) + 1)]
    gradient = max(sum(norms[:J]) - bias[J] for J in range(1, len(norms) + 1))
    reached = set()
    for K in range(1, len(norms)):
        # A tolerance between the bias of K and that of K - 1 makes it K.
        tolerance = math.sqrt(bias[K] * bias[K - 1]) / gradient
        credit = observed(decay_of(*norms), tolerance, start=2, least=1, most=50, tau=tau)
        assert credit.reach == K
        assert credit.relative_bias == pytest.approx(bias[K] / gradient, rel=1e-9)
        reached.add(tau > K)
    assert reached == {True, False}


def test_the_gradient_is_what_the_sums_say_where_terms_cancel():
    norms = 0.5 ** np.arange(30.0)
    alone = observed(decay_of(*norms), 0.05, most=30)
    cancelling = observed(decay_of(*norms, sums=norms.cumsum() / 8), 0.05, most=30)
    # bias(K) = 2^{1-K}; relative to 2 below a twentieth from K = 5 on, to 1/4 three later.
    assert (alone.reach, cancelling.reach) == (5, 8)


def test_norms_are_the_mean_over_the_sequences():
    phi = 0.5 ** np.arange(30.0)
    both = Decay(np.stack([0.5 * phi, 1.5 * phi]), phi.cumsum())
    assert observed(both, 0.05).state_dict() == observed(decay_of(*phi), 0.05).state_dict()


def test_tau_is_four_fifths_unless_given():
    """Before τ the norms do not fall at all, so β tells where it is."""
    norms = np.where(np.arange(50) < 40, 1.0, 0.5 ** (np.arange(50.0) - 39))
    assert observed(decay_of(*norms), 0.1, most=50).beta == pytest.approx(0.5)
    assert 0.55 < observed(decay_of(*norms), 0.1, most=50, tau=35).beta < 0.65
    assert observed(decay_of(*norms[:49]), 0.1, most=50).beta == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("beta", [1.0, 1.02, 2.0])
def test_where_the_gradient_does_not_decay_the_reach_is_the_most(beta):
    credit = observed(geometric(beta, 40), 0.5, most=40)
    assert credit.reach == 40
    assert credit.relative_bias == math.inf
    assert credit.beta == pytest.approx(beta)
    assert "the gradient does not decay" in repr(credit)


def test_where_the_bound_on_the_gradient_says_nothing_the_reach_is_the_most():
    credit = observed(geometric(0.99, 40), 0.5, most=40)
    assert credit.beta == pytest.approx(0.99)
    assert (credit.reach, credit.relative_bias) == (40, math.inf)


def test_a_gradient_of_zero_bounds_nothing():
    credit = observed(decay_of(*np.zeros(40)), 0.5, most=40)
    assert (credit.reach, credit.beta, credit.relative_bias) == (40, 0.0, math.inf)


def test_what_has_vanished_by_tau_has_no_slope():
    # A reach of 1 leaves out 0.75 of 1.75, one of 2 a quarter.
    for tolerance, reach in [(0.5, 1), (0.4, 2), (0.15, 2), (0.14, 3), (1e-9, 3)]:
        credit = observed(decay_of(1, 0.5, 0.25, *np.zeros(37)), tolerance, least=1, most=40)
        assert (credit.beta, credit.reach) == (0.0, reach)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["norms", "sums"])
def test_what_is_not_finite_is_refused_and_changes_nothing(value, where):
    decay = geometric(0.5, 40)
    (decay.norms if where == "norms" else decay.sums)[..., 7] = value
    credit = Adaptive(0.1)
    with pytest.raises(DivergedError, match=r"not finite.*smaller most="):
        credit.observe(decay)
    assert credit == Adaptive(0.1)


@pytest.mark.parametrize("lags", [1, 2])
def test_so_few_lags_tell_nothing(lags):
    credit = observed(geometric(0.5, lags), 0.1)
    assert credit == Adaptive(0.1)
    assert observed(geometric(0.5, 3), 0.1).measurements == 1


def test_the_reach_stays_within_its_bounds():
    fast, slow = geometric(0.1, 100), geometric(0.9, 100)
    assert observed(fast, 0.5, least=1).reach == 1
    assert observed(fast, 0.5).reach == 2
    assert observed(fast, 0.5, least=9).reach == 9
    assert observed(slow, 0.01).reach == 44
    few = observed(slow, 0.01, most=30)
    assert few.reach == 30
    assert few.relative_bias == pytest.approx(0.9**30 / (1 - 2 * 0.9**30), rel=0.5)
    # Fewer lags than it could reach are no bound.
    assert observed(geometric(0.9, 20), 1e-9, most=100).reach == 100


def test_a_smaller_tolerance_never_reaches_less():
    rng = np.random.default_rng(2)
    norms = 0.85 ** np.arange(100) * rng.uniform(0.5, 1.5, 100)
    tolerances = np.geomspace(1e-6, 2, 60)
    reaches = [observed(decay_of(*norms), float(t)).reach for t in tolerances]
    assert reaches == sorted(reaches, reverse=True)
    assert len(set(reaches)) > 20


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 31])
def test_every_loss_reaches_at_least_k_plus_one_steps(steps):
    credit = Adaptive(0.1, start=6)
    for K in (6, 4):
        W = credit.plan(steps).matrix()
        for t in range(steps):
            first = int(np.flatnonzero(W[t])[0])
            assert t - first + 1 >= min(t + 1, K + 1)
            assert t - first + 1 <= 2 * K
            assert first == max(0, (t // K - 1) * K)
            assert (W[t, first : t + 1] == 1).all()
        assert (credit.window, credit.history) == (K, K)
        credit.observe(geometric(0.5, 100))
    assert credit.reach == 4


def test_it_measures_so_many_lags_and_writes_what_it_found():
    credit = Adaptive(0.1, start=8, most=40)
    assert repr(credit) == "Adaptive(0.1, start=8, most=40; reach 8 assumed, nothing measured yet)"
    asked = []

    def probe(lags):
        asked.append(lags)
        return geometric(0.5, lags)

    credit.adapt(probe)
    assert asked == [40]
    assert repr(credit) == "Adaptive(0.1, start=8, most=40; reach 4, decay 0.5 a step)"
    credit.adapt(probe)
    assert (credit.measurements, credit.reach) == (2, 4)
    assert credit.spelling == "adaptive:0.1,start=8,most=40"


@pytest.mark.parametrize("decay", [None, geometric(0.5, 100), geometric(1.1, 100)])
def test_what_it_has_learnt_can_be_saved(decay):
    import json

    credit = Adaptive(0.1, start=8)
    if decay is not None:
        credit.observe(decay)
    again = Adaptive(0.1, start=8)
    again.load_state_dict(json.loads(json.dumps(credit.state_dict(), allow_nan=False)))
    assert again == credit
    assert repr(again) == repr(credit)


@pytest.mark.parametrize(
    "damage",
    [
        {"reach": None},
        {"reach": "far"},
        {"reach": 1},
        {"reach": 101},
        {"reach": -5},
        {"beta": "x"},
        {"relative_bias": []},
        {"measurements": None},
        *({k: ...} for k in ("reach", "beta", "relative_bias", "measurements")),
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    state = {**observed(geometric(0.5, 100), 0.1).state_dict(), **damage}
    credit = Adaptive(0.1)
    with pytest.raises(CheckpointError, match=r"the saved state of Adaptive\(0.1.* is damaged"):
        credit.load_state_dict({k: v for k, v in state.items() if v is not ...})
    assert credit == Adaptive(0.1)


# ------------------------------------------------------------------------------- the measuring


class Linear(nn.Module):
    """h_t = W h_{t-1} + x_t, whose gradients are powers of W."""

    state_batch_dim = 0

    def __init__(self, W):
        super().__init__()
        self.W = nn.Parameter(W)

    def forward(self, x, h=None):
        h = torch.zeros_like(x[0]) if h is None else h
        outputs = []
        for x_t in x:
            h = h @ self.W.T + x_t
            outputs.append(h)
        return torch.stack(outputs), h


class Named(nn.Module):
    """A cell with a state that is a dictionary: two tensors, and a count that is none."""

    state_batch_dim = 0

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(2, 3, dtype=torch.float64)

    def forward(self, x, state=None):
        if state is None:
            zero = x.new_zeros(x.shape[1], 3)
            state = {"h": zero, "memory": {"c": zero}, "steps": 0}
        outputs = []
        for x_t in x:
            h, c = self.cell(x_t, (state["h"], state["memory"]["c"]))
            state = {"h": h, "memory": {"c": c}, "steps": state["steps"] + 1}
            outputs.append(h)
        return torch.stack(outputs), state


@pytest.mark.parametrize("lags", [2, 3, 7, 8, 9, 50])
def test_of_a_linear_network_the_norms_are_those_of_powers(lags):
    T, B, H = 8, 3, 4
    W, x = torch.randn(H, H, dtype=torch.float64) / 2, torch.randn(T, B, H, dtype=torch.float64)
    direction = torch.randn(B, H, dtype=torch.float64)

    def loss(y):
        assert y.shape == (1, B, H)
        return (y[0] * direction).sum()

    decay = measure_decay(Linear(W), x, loss, lags=lags)
    found = min(lags, T)
    g = [direction @ torch.linalg.matrix_power(W, k) for k in range(1, found)]
    g.insert(0, g[0])  # lag 0 is taken to be lag 1
    np.testing.assert_allclose(decay.norms, torch.stack([a.norm(dim=1) for a in g], 1), rtol=1e-12)
    sums = [sum(a.mean(0) for a in g[: k + 1]).norm() for k in range(found)]
    np.testing.assert_allclose(decay.sums, sums, rtol=1e-12)
    assert decay.norms.shape == (B, found)


def test_the_decay_of_a_linear_network_is_found_again():
    W = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] * 0.8
    x = torch.randn(150, 5, 4, dtype=torch.float64)
    credit = Adaptive(0.1)
    credit.adapt(lambda lags: measure_decay(Linear(W), x, lambda y: y.sum(), lags=lags))
    assert credit.beta == pytest.approx(0.8, rel=1e-6)


@pytest.mark.parametrize("kind", [bptt.GRU, bptt.LSTM, nn.LSTM])
def test_the_probe_and_the_flow_measure_and_fit_the_same(kind):
    module, x = kind(3, 8, dtype=torch.float64), torch.randn(40, 1, 3, dtype=torch.float64)
    flow = bptt.gradient_flow(module, x, lambda y: y.sum(2), times=[39])
    decay = measure_decay(module, x, lambda y: y.sum(), lags=40)
    each = sum(s.norms[0, 0].flip(0)[1:].square() for s in flow.states).sqrt()
    np.testing.assert_allclose(decay.norms[0, 1:], each, rtol=1e-10)
    fit = flow.decay
    assert fit.last == 39
    assert observed(decay, most=40, tau=fit.first).beta == pytest.approx(fit.beta, rel=1e-10)


def test_the_line_through_weighted_points_and_its_error():
    lags, points = np.array([0.0, 1, 2, 3]), np.array([0.0, -1, -2.5, -3])
    beta, error = fit_decay_rate(lags, points, np.array([1.0, 2, 1, 2]))
    twice = [0, 1, 1, 2, 3, 3]
    (slope, _), covariance = np.polyfit(lags, points, 1, w=np.sqrt([1, 2, 1, 2]), cov="unscaled")
    residues = points - np.polyval(np.polyfit(lags[twice], points[twice], 1), lags)
    assert np.log(beta) == pytest.approx(slope, rel=1e-12)
    scatter = (residues**2 @ [1, 2, 1, 2]) / 2
    assert error == pytest.approx(beta * np.sqrt(covariance[0, 0] * scatter), rel=1e-12)
    assert fit_decay_rate(lags[:2], points[:2]) == (pytest.approx(np.exp(-1)), pytest.approx(0))


def modules():
    def f64(kind, **options):
        return kind(2, 3, dtype=torch.float64, **options)

    return {
        "bptt.LSTM": f64(bptt.LSTM),
        "bptt.LSTM, two layers, batch first": f64(bptt.LSTM, num_layers=2, batch_first=True),
        "torch GRU": f64(nn.GRU),
        "torch GRU, two layers, batch first": f64(nn.GRU, num_layers=2, batch_first=True),
        "stepwise LSTMCell": bptt.Stepwise(f64(nn.LSTMCell)),
        "a dictionary": Named(),
    }


@pytest.mark.parametrize("name", modules())
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("lags", [2, 4, 6, 9])
def test_is_what_autograd_finds_step_by_step(name, with_state, lags):
    module, T, B = modules()[name], 6, 3
    first = getattr(module, "batch_first", False)
    x = torch.randn(T, B, 2, dtype=torch.float64)
    steps = [x[t : t + 1].transpose(0, 1) if first else x[t : t + 1] for t in range(T)]
    inputs = torch.cat(steps, dim=int(first))
    initial = None
    if with_state:
        _, initial = module(steps[0])
    target = torch.randn(B, 3, dtype=torch.float64)

    def loss(y):
        return (y.reshape(B, 3) - target).square().sum(1).mean()

    decay = measure_decay(module, inputs, loss, initial, lags=lags)
    assert all(p.grad is None for p in module.parameters())

    # By hand: each step from a leaf of its own, its gradient handed on by the chain rule.
    befores, afters, state = [], [], initial
    for t in range(T):
        state = map_tensors(lambda s: s.detach().requires_grad_(), state)
        befores.append([s for s in leaves_of(state) if torch.is_tensor(s)])
        y, state = module(steps[t], state)
        afters.append([s for s in leaves_of(state) if torch.is_tensor(s)])
    gradients = [torch.autograd.grad(loss(y), befores[-1])]
    for t in range(T - 2, T - min(lags, T), -1):
        gradients.append(torch.autograd.grad(afters[t], befores[t], gradients[-1]))
    gradients.insert(0, gradients[0])
    dim = getattr(module, "state_batch_dim", 1)
    total, norms, sums = 0, [], []
    for g in gradients:
        rows = torch.stack([torch.cat([a.select(dim, b).flatten() for a in g]) for b in range(B)])
        norms.append(rows.norm(dim=1))
        total = total + rows.mean(0)
        sums.append(total.norm())
    np.testing.assert_allclose(decay.norms, torch.stack(norms, 1), rtol=1e-10)
    np.testing.assert_allclose(decay.sums, torch.stack(sums), rtol=1e-10)
    assert decay.norms.shape == (B, min(lags, T))
    assert (decay.norms > 1e-4).all()


@pytest.mark.parametrize("module", [bptt.GRU(2, 3), nn.LSTM(2, 3, num_layers=2, batch_first=True)])
def test_a_sequence_without_a_batch(module):
    x = torch.randn(9, 2)
    decay = measure_decay(module, x, lambda y: y.square().sum(), lags=5)
    one = x[None] if module.batch_first else x[:, None]
    batched = measure_decay(module, one, lambda y: y.square().sum(), lags=5)
    assert decay.norms.shape == (1, 5)
    np.testing.assert_allclose(decay.norms, batched.norms, rtol=1e-5)


def test_where_the_batch_lies_may_be_said():
    module = Linear(torch.eye(3) / 2)
    found = measure_decay(module, torch.randn(5, 4, 3), lambda y: y.sum(), lags=3)
    assert found.norms.shape == (4, 3)
    with pytest.raises(ValueError, match=r"\(4, 3\), where dimension 1 should be the batch of 4"):
        measure_decay(module, torch.randn(5, 4, 3), lambda y: y.sum(), lags=3, state_batch_dim=1)


def test_a_single_step_needs_a_state_before_it():
    module, x = bptt.GRU(2, 3), torch.randn(1, 4, 2)
    with pytest.raises(ValueError, match="at least two steps, or a state before the only one"):
        measure_decay(module, x, lambda y: y.sum(), lags=10)
    state = torch.randn(1, 4, 3)
    decay = measure_decay(module, x, lambda y: y.sum(), state, lags=10)
    leaf = state.clone().requires_grad_()
    module(x, leaf)[0].sum().backward()
    expected = leaf.grad[0].norm(dim=1)
    np.testing.assert_allclose(decay.norms, torch.stack([expected] * 2, 1), rtol=1e-6)
    assert state.grad is None
    assert not state.requires_grad


def test_a_layer_that_the_loss_does_not_see_counts_as_zero():
    """The loss is of the output alone, so c of the last step but one passes through h only."""

    class Deaf(nn.Module):
        def forward(self, x, state=None):
            state = (torch.zeros(1, x.shape[1], 3),) * 2 if state is None else state
            h, unused = state
            outputs = []
            for x_t in x:
                h, unused = (h / 2 + x_t), unused * 3
                outputs.append(h[0])
            return torch.stack(outputs), (h, unused)

    decay = measure_decay(Deaf(), torch.randn(9, 2, 3), lambda y: y.sum(), lags=4)
    expected = [3**0.5 * 0.5**k for k in (1, 1, 2, 3)]
    np.testing.assert_allclose(decay.norms, [expected] * 2, rtol=1e-6)


def test_a_state_made_anew_at_each_step_has_no_gradient():
    class Forgetful(nn.Module):
        def forward(self, x, state=None):
            h = torch.zeros(1, x.shape[1], 3) if state is None else state[0]
            for x_t in x:
                h = h / 2 + x_t
            return h, (h, torch.ones(1, x.shape[1], 1))

    decay = measure_decay(Forgetful(), torch.randn(9, 2, 3), lambda y: y.sum(), lags=4)
    np.testing.assert_allclose(decay.norms[0], [3**0.5 * 0.5**k for k in (1, 1, 2, 3)], rtol=1e-6)


def test_no_grad_around_it_does_not_matter():
    module, x = bptt.LSTM(2, 3), torch.randn(9, 4, 2)
    outside = measure_decay(module, x, lambda y: y.square().sum(), lags=5)
    with torch.no_grad():
        inside = measure_decay(module, x, lambda y: y.square().sum(), lags=5)
    for a, b in itertools.zip_longest(outside, inside):
        np.testing.assert_array_equal(a, b)
