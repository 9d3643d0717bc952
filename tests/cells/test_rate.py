"""Rate networks against their paper, and Dale's law."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from cells.from_papers import H, I, blocks, check_as_the_paper, given, layer
from torch.nn.utils import parametrize

import bptt
from bptt.cells import RATE, dales_law, make_rate


def paper(alpha, phi):
    def run(module, u, state):
        ((W_in, b_in, W_rec, b_rec),) = blocks(module)
        a = torch.sigmoid(module.weight_units_l0[0]) if alpha is None else alpha
        (r, x), all_r = (s[0] for s in state), []
        for u_t in u:
            x = (1 - a) * x + a * (r @ W_rec.T + b_rec + u_t @ W_in.T + b_in)
            r = phi(x)
            all_r.append(r)
        return torch.stack(all_r), r[None], x[None]

    return run


@pytest.mark.parametrize(
    ("cell", "alpha", "phi"),
    [
        (RATE, 0.2, torch.relu),
        (make_rate(), 0.2, torch.relu),
        (make_rate(0.7, torch.tanh), 0.7, torch.tanh),
        (make_rate(None, torch.nn.functional.softplus), None, torch.nn.functional.softplus),
    ],
    ids=["RATE", "defaults", "tanh", "learnt"],
)
def test_it_is_that_of_the_paper(cell, alpha, phi):
    check_as_the_paper(cell, paper(alpha, phi), scale=2.0)


def test_with_alpha_1_it_is_the_elman_network():
    module, rnn = layer(make_rate(1, torch.tanh)), bptt.RNN(I, H, dtype=torch.float64)
    rnn.load_state_dict(module.state_dict())
    x, (r, v) = given(RATE)
    torch.testing.assert_close(module(x, (r, v))[0], rnn(x, r)[0], rtol=1e-12, atol=1e-12)


def test_finer_steps_come_to_the_solution_of_its_equation():
    """τ dx/dt = -x + I with constant I and no recurrent weights: x(t) = I (1 - exp(-t/τ))."""
    errors = []
    for steps in (100, 1000):
        module = layer(make_rate(2.0 / steps))
        with torch.no_grad():
            module.weight_hh_l0.zero_()
            module.bias_hh_l0.zero_()
        u = torch.ones(steps, 1, I, dtype=torch.float64)
        _, (_, x) = module(u)
        current = u[0] @ module.weight_ih_l0.T + module.bias_ih_l0
        exact = current * (1 - torch.exp(torch.tensor(-2.0, dtype=torch.float64)))
        errors.append(float((x[0] - exact).detach().abs().max()))
    assert errors[0] < 0.01
    assert errors[1] < errors[0] / 9  # Euler's method is of the first order


@pytest.mark.parametrize("alpha", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none(alpha):
    with pytest.raises(ValueError, match="alpha must be above 0 and at most 1, got"):
        make_rate(alpha)


def test_they_are_pickled():
    assert pickle.loads(pickle.dumps(RATE)) is RATE
    again = pickle.loads(pickle.dumps(layer(make_rate(0.5, torch.tanh))))
    x, state = given(RATE)
    assert torch.equal(again(x, state)[0], layer(make_rate(0.5, torch.tanh))(x, state)[0])


# ---------------------------------------------------------------------------------- Dale's law


def signs_of(module, name="weight_hh_l0"):
    return getattr(module, name).detach().sign()


@pytest.mark.parametrize("self_connections", [False, True])
def test_the_signs_hold_in_training(self_connections):
    options = {"num_layers": 2, "bidirectional": True}
    module = dales_law(layer(RATE, **options), 0.6, self_connections=self_connections)
    expected = torch.tensor([1.0, 1, 1, -1, -1], dtype=torch.float64).repeat(H, 1)
    if not self_connections:
        expected.fill_diagonal_(0)
    names = [f"weight_hh_l{n}{d}" for n in (0, 1) for d in ("", "_reverse")]
    before = {name: getattr(module, name).detach().clone() for name in names}
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(20):
        x = torch.randn(6, 4, I, dtype=torch.float64)
        optimizer.zero_grad()
        (module(x, credit="truncated:3")[0] - 1).square().mean().backward()
        optimizer.step()
    for name in names:
        assert torch.equal(signs_of(module, name), expected)
        assert (getattr(module, name) - before[name]).abs().max() > 0.01


def test_what_it_does_to_gradients_is_autograds():
    module = dales_law(layer(RATE, 2.0))
    if bptt.kernels.backend().name == "native":
        assert bptt.kernels.not_native(module) is None
    x, state = given(RATE)
    V = module.parametrizations.weight_hh_l0.original
    y, _ = module(x, state)
    (found,) = torch.autograd.grad(y.sin().sum(), V)
    D = module.parametrizations.weight_hh_l0[0].signs
    W = (V.abs() * D).detach().requires_grad_()
    plain = layer(RATE, 2.0)
    y = torch.func.functional_call(plain, {"weight_hh_l0": W}, (x, state))[0]
    (of_W,) = torch.autograd.grad(y.sin().sum(), W)
    assert of_W.abs().sum() > 0.1
    torch.testing.assert_close(found, of_W * D * V.sign(), rtol=1e-12, atol=1e-14)


def test_excitation_and_inhibition_balance():
    torch.manual_seed(0)
    W = dales_law(bptt.Recurrent(RATE, 2, 500), self_connections=True).weight_hh_l0
    assert W.sum(1).abs().mean() < 0.05 * W.abs().sum(1).mean()


def radius_of(W):
    return float(torch.linalg.eigvals(W.detach().double()).abs().max())


@pytest.mark.parametrize("self_connections", [False, True])
@pytest.mark.parametrize("radius", [0.5, 1.5])
def test_the_spectral_radius_is_that_of_the_signed_matrix(radius, self_connections):
    options = {"num_layers": 2, "bidirectional": True}
    module = bptt.Recurrent(RATE, 2, 40, **options, dtype=torch.float64)
    plain = dales_law(copy.deepcopy(module), self_connections=self_connections)
    scaled = dales_law(module, self_connections=self_connections, radius=radius)
    for name in (f"weight_hh_l{n}{d}" for n in (0, 1) for d in ("", "_reverse")):
        W, was = getattr(scaled, name), getattr(plain, name)
        assert radius_of(W) == pytest.approx(radius, rel=1e-9)
        assert abs(radius_of(was) - radius) > 0.1 * radius
        torch.testing.assert_close(W, was * (radius / radius_of(was)))  # one number for all


def test_the_radius_is_that_of_torchs_module_and_of_half_precision():
    assert radius_of(dales_law(torch.nn.RNN(2, 30), radius=0.9).weight_hh_l0) == pytest.approx(0.9)
    module = bptt.Recurrent(RATE, 2, 30, dtype=torch.bfloat16)
    assert radius_of(dales_law(module, radius=0.9).weight_hh_l0) == pytest.approx(0.9, rel=0.02)


def test_a_state_decays_as_the_radius_says():
    """A linear rate network without a leak: the state after n steps goes as radius ** n."""
    cell = make_rate(1, torch.nn.Identity())
    module = dales_law(bptt.Recurrent(cell, 1, 20, dtype=torch.float64), radius=0.8)
    with torch.no_grad():
        for b in (module.bias_ih_l0, module.bias_hh_l0):
            b.zero_()
    start = torch.randn(1, 1, 20, dtype=torch.float64)
    y, _ = module(torch.zeros(400, 1, 1, dtype=torch.float64), (start, start))
    norms = y.detach().norm(dim=2)[:, 0].log()
    rate = float((norms[399] - norms[99]) / 300)
    assert rate == pytest.approx(math.log(0.8), abs=0.01)


@pytest.mark.parametrize(
    ("make", "radius", "match"),
    [
        (lambda: layer(RATE), 0, "radius must be a finite number above 0 .*got 0$"),
        (lambda: layer(RATE), -1.0, "got -1.0"),
        (lambda: layer(RATE), float("nan"), "got nan"),
        (lambda: layer(RATE), float("inf"), "got inf"),
        (lambda: bptt.GRU(3, 4), 1.0, "one recurrent matrix, but this one has 3, .*leave radius"),
        (lambda: bptt.Recurrent(RATE, 2, 1), 1.0, "spectral radius 0, which cannot be scaled to 1"),
        (lambda: bptt.Recurrent(RATE, 2, 4, proj_size=2), 1.0, "leave proj_size out"),
    ],
)
def test_a_radius_that_makes_no_sense_changes_nothing(make, radius, match):
    module = make()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(ValueError, match=match):
        dales_law(module, radius=radius)
    after = dict(module.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], p) for name, p in before.items())


def test_of_gates_each_block_has_the_signs():
    module = dales_law(bptt.GRU(3, 4), 0.5)
    for block in signs_of(module).chunk(3):
        expected = torch.tensor([1.0, 1, -1, -1]).repeat(4, 1)
        assert torch.equal(block, expected.fill_diagonal_(0))


def test_it_is_saved_copied_and_set():
    module, other = dales_law(layer(RATE)), dales_law(layer(RATE, 3.0))
    other.load_state_dict(module.state_dict())
    x, state = given(RATE)
    assert torch.equal(module(x, state)[0], other(x, state)[0])
    assert torch.equal(module(x, state)[0], copy.deepcopy(module)(x, state)[0])
    W = signs_of(module) * 0.25
    module.weight_hh_l0 = W
    assert torch.equal(module.weight_hh_l0, W)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert torch.equal(module.weight_hh_l0, W)
    assert pickle.loads(pickle.dumps(module)).weight_hh_l0.equal(W)


@pytest.mark.parametrize(
    ("make", "share", "error", "match"),
    [
        (lambda: layer(RATE), 1.2, ValueError, "excitatory must be from 0 to 1, got 1.2"),
        (lambda: dales_law(layer(RATE)), 0.8, ValueError, "parametrized already: .* a new module"),
        (lambda: bptt.LSTM(3, 4, proj_size=2), 0.8, ValueError, "leave proj_size out"),
        (lambda: torch.nn.Linear(3, 4), 0.8, TypeError, "weight_hh, got Linear"),
        (lambda: layer(bptt.cells.INDRNN), 0.8, TypeError, "weight_hh, got Recurrent"),
    ],
)
def test_what_has_no_signs(make, share, error, match):
    with pytest.raises(error, match=match):
        dales_law(make(), share)
