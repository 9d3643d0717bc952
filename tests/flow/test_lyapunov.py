"""Lyapunov exponents, beside maps and networks whose exponents are known."""

from __future__ import annotations

import math

import pytest
import torch
from flow.foreign import Linear, Map, Named
from problems import OF_TORCH
from torch import nn

import bptt
from bptt import lyapunov_exponents
from bptt._src.flow.lyapunov import exponents_of
from bptt._src.flow.trajectory import follow


def steps(n, batch=1):
    return torch.zeros(n, batch, 1, dtype=torch.float64)


def test_a_linear_map_gives_the_logarithms_of_its_eigenvalues():
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    sizes = torch.tensor([1.3, -0.9, 0.5, 0.2, 0.05], dtype=torch.float64)
    shear = torch.eye(5, dtype=torch.float64) + torch.randn(5, 5, generator=generator).triu(1)
    matrix = turn @ (shear.inverse() @ torch.diag(sizes) @ shear) @ turn.T
    found = lyapunov_exponents(Linear(matrix), steps(250, 2), 5, torch.ones(2, 5).double(), 100)
    torch.testing.assert_close(found.exponents, sizes.abs().log(), atol=1e-3, rtol=0)
    assert (found.steps, found.warmup) == (150, 100)
    leading = lyapunov_exponents(Linear(matrix), steps(250, 2), 2, torch.ones(2, 5).double(), 100)
    torch.testing.assert_close(leading.exponents, sizes[:2].abs().log(), atol=1e-3, rtol=0)


def test_the_logistic_map_has_ln_2():
    start = torch.tensor([[0.1234], [0.4], [0.71]], dtype=torch.float64)
    logistic = Map(lambda x: 4 * x * (1 - x))
    found = lyapunov_exponents(logistic, steps(1000, 3), state=start, warmup=100)
    error = abs(float(found.exponents[0]) - math.log(2))
    assert error < 0.02
    assert error < 4 * float(found.errors[0]) < 0.08
    assert found.exponents.shape == (1,)  # of one number there are no four


def test_the_henon_map():
    """λ_1 is 0.41922; an area shrinks by b = 0.3 in each step, so the sum is exactly log 0.3."""

    def henon(s):
        x, y = s.unbind(1)
        return torch.stack([1 - 1.4 * x * x + y, 0.3 * x], dim=1)

    start = 0.1 * torch.randn(12, 2, dtype=torch.float64)
    found = lyapunov_exponents(Map(henon), steps(800, 12), 2, start, 100)
    assert abs(float(found.exponents.sum()) - math.log(0.3)) < 1e-10
    error = abs(float(found.exponents[0]) - 0.41922)
    assert error < 4 * float(found.errors[0]) < 0.03


def random_tanh(gain, hidden=150):
    """Weights of variance gain²/H: chaotic above 1 (Sompolinsky, Crisanti and Sommers, 1988)."""
    rnn = bptt.RNN(1, hidden, bias=False, dtype=torch.float64)
    nn.init.normal_(rnn.weight_hh_l0, 0, gain / hidden**0.5)
    return rnn, torch.randn(1, 2, hidden, dtype=torch.float64)


def test_a_network_is_chaotic_above_a_gain_of_1_and_contracts_below():
    for gain, sign in ((0.5, -1), (1.8, 1)):
        rnn, state = random_tanh(gain)
        found = lyapunov_exponents(rnn, steps(400, 2), 3, state)
        assert (sign * found.exponents[0] > 5 * found.errors[0]).all()
        assert (found.exponents.diff() <= 0).all()
    assert found.exponents[0] < 0.5  # log 1.8 = 0.59 where nothing is saturated


def test_neighbouring_states_part_at_that_rate():
    """Checked without any derivative: two states 1e-9 apart, and their distance later."""
    rnn, state = random_tanh(1.8)
    found = lyapunov_exponents(rnn, steps(300, 2), 1, state, 100)
    with torch.no_grad():
        _, near = rnn(steps(100, 2), state)
        _, on = rnn(steps(200, 2), near)
        _, off = rnn(steps(200, 2), near + 1e-12 * torch.randn_like(near))
        rate = ((on - off).norm(dim=2) / (1e-12 * 150**0.5)).log().mean() / 200
    assert abs(float(rate - found.exponents[0])) < 0.02


@pytest.mark.parametrize("mode", OF_TORCH)
def test_all_exponents_add_up_to_the_mean_log_determinant(mode):
    """Σ λ_i = mean log |det J_t|, for each cell; the determinant from the whole Jacobian."""
    name, _, phi = mode.partition("_")
    options = {"nonlinearity": phi.lower()} if phi else {}
    module = getattr(bptt, name)(2, 3, dtype=torch.float64, **options)
    if phi == "RELU":
        nn.init.constant_(module.bias_ih_l0, 5.0)  # all active: a determinant that is not 0
    x = torch.randn(30, 2, 2, dtype=torch.float64)
    (layer,) = follow(module, x)
    found = exponents_of(layer, layer.size, 0)
    (piece,) = layer.pieces()
    expected = torch.linalg.det(piece.jacobian).abs().log().mean()
    assert expected < -0.5
    torch.testing.assert_close(found.exponents.sum(), expected)


def test_a_stack_has_the_exponents_of_its_layers():
    """Beside the whole stack as one step: a Jacobian of blocks, triangular."""
    gru = bptt.GRU(2, 3, num_layers=2, dtype=torch.float64)
    x = torch.randn(150, 2, 2, dtype=torch.float64)
    whole = lyapunov_exponents(
        lambda x, s: gru(x, s), x, 6, torch.zeros(2, 2, 3, dtype=torch.float64), 50
    )
    layers = lyapunov_exponents(gru, x, 6, warmup=50)
    torch.testing.assert_close(layers.exponents, whole.exponents, atol=1e-2, rtol=0)
    torch.testing.assert_close(layers.exponents.sum(), whole.exponents.sum(), atol=1e-8, rtol=0)
    leading = lyapunov_exponents(gru, x, 2, warmup=50)
    torch.testing.assert_close(leading.exponents, layers.exponents[:2])


def test_a_direction_that_is_lost_has_minus_infinity():
    rnn = bptt.RNN(1, 3, nonlinearity="relu")
    nn.init.constant_(rnn.bias_ih_l0, -100)
    found = lyapunov_exponents(rnn, torch.ones(10, 1, 1))
    assert found.exponents.tolist() == [-math.inf] * 3


def test_torch_and_foreign_modules():
    ours, x = bptt.LSTM(2, 4), torch.randn(60, 2, 2)
    theirs = nn.LSTM(2, 4)
    theirs.load_state_dict(ours.state_dict())
    a, b = lyapunov_exponents(ours, x), lyapunov_exponents(theirs, x)
    assert torch.equal(a.exponents, b.exponents)
    cell = nn.LSTMCell(2, 4)
    with torch.no_grad():
        for p, q in zip(cell.parameters(), ours.parameters(), strict=True):
            p.copy_(q)
    c = lyapunov_exponents(bptt.Stepwise(cell), x, state=(torch.zeros(2, 4), torch.zeros(2, 4)))
    torch.testing.assert_close(c.exponents, a.exponents, atol=1e-4, rtol=1e-4)
    found = lyapunov_exponents(Named(), torch.randn(40, 3, 2, dtype=torch.float64), 8)
    assert found.exponents.shape == (8,)
    assert found.steps == 32  # of 39 whose state before is known, 7 to warm up


def test_without_pieces_of_time_there_is_no_error():
    found = lyapunov_exponents(bptt.RNN(1, 3), torch.zeros(3, 1, 1), warmup=0)
    assert found.exponents.isfinite().all()
    assert found.errors.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"k": 7}, "has 6 numbers.*got k=7"),
        ({"warmup": 10}, "at least one of the 10 steps, got 10"),
        ({"warmup": -1}, "got -1"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(bptt.RNN(1, 3, num_layers=2), torch.zeros(10, 1, 1), **options)
