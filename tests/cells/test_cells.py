"""One step of each cell against torch.nn's cells, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from problems import SPIKING, state, weights

from bptt.cells import BY_NAME, Weights

THEIRS = {
    "RNN_TANH": lambda i, h: torch.nn.RNNCell(i, h, nonlinearity="tanh"),
    "RNN_RELU": lambda i, h: torch.nn.RNNCell(i, h, nonlinearity="relu"),
    "GRU": torch.nn.GRUCell,
    "LSTM": torch.nn.LSTMCell,
}


@pytest.mark.parametrize("mode", THEIRS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_step_is_that_of_torch(mode, bias):
    cell = BY_NAME[mode]
    w, s = weights(cell, 3, 5, bias=bias), state(cell, 2, 5)
    x = torch.randn(2, 3, dtype=torch.float64)
    theirs = THEIRS[mode](3, 5).double()
    with torch.no_grad():
        theirs.weight_ih.copy_(w.ih)
        theirs.weight_hh.copy_(w.hh)
        theirs.bias_ih.copy_(w.b_ih if bias else torch.zeros_like(theirs.bias_ih))
        theirs.bias_hh.copy_(w.b_hh if bias else torch.zeros_like(theirs.bias_hh))
    expected = theirs(x, s if mode == "LSTM" else s[0])
    expected = expected if mode == "LSTM" else (expected,)
    for ours, their in zip(cell.step(x, s, w), expected, strict=True):
        torch.testing.assert_close(ours, their, rtol=1e-12, atol=1e-12)


def test_the_sigmoid_of_the_elman_network():
    cell = BY_NAME["RNN_SIGMOID"]
    w, s = weights(cell, 3, 5), state(cell, 2, 5)
    x = torch.randn(2, 3, dtype=torch.float64)
    (h,) = cell.step(x, s, w)
    a = x @ w.ih.T + w.b_ih + s[0] @ w.hh.T + w.b_hh
    torch.testing.assert_close(h, 1 / (1 + torch.exp(-a)), rtol=1e-12, atol=1e-12)


def test_the_projection_of_the_lstm():
    cell = BY_NAME["LSTM"]
    w, s = weights(cell, 3, 5, projection=2), state(cell, 4, 5, projection=2)
    x = torch.randn(4, 3, dtype=torch.float64)
    theirs = torch.nn.LSTM(3, 5, proj_size=2, dtype=torch.float64)
    with torch.no_grad():
        for p, value in zip(theirs.parameters(), w[:5], strict=True):
            p.copy_(value)
    _, (h, c) = theirs(x.unsqueeze(0), tuple(t.unsqueeze(0) for t in s))
    ours = cell.step(x, s, w)
    torch.testing.assert_close(ours[0], h[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[1], c[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [name for name in BY_NAME if name not in SPIKING])
def test_gradients_by_finite_differences(mode):
    cell = BY_NAME[mode]
    w, s = weights(cell, 2, 3), state(cell, 2, 3)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *tensors):
        p = tensors[cell.states :]
        return cell.step(x, tensors[: cell.states], Weights(*p[:4], None, *p[4:]))

    given = (x, *s, *(p for p in w if p is not None))
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given)
