"""The closed-form continuous-time network against its paper."""

from __future__ import annotations

import pytest
import torch
from cells.from_papers import blocks, check_as_the_paper, given, layer

import bptt


def paper(module, x, state):
    (W_f, b_f, V_f, c_f), (W_g, b_g, V_g, c_g), (W_k, b_k, V_k, c_k) = blocks(module)
    h, all_h, t = state[0][0], [], 1.0
    for I_t in x:
        f = I_t @ W_f.T + b_f + h @ V_f.T + c_f
        g = torch.tanh(I_t @ W_g.T + b_g + h @ V_g.T + c_g)
        k = torch.tanh(I_t @ W_k.T + b_k + h @ V_k.T + c_k)
        h = torch.sigmoid(-f * t) * g + (1 - torch.sigmoid(-f * t)) * k
        all_h.append(h)
    return torch.stack(all_h), h[None]


def test_it_is_that_of_the_paper():
    check_as_the_paper(bptt.cells.CFC, paper, scale=3.0)


@pytest.mark.parametrize(("bias", "block"), [(-60.0, 1), (60.0, 2)])
def test_its_limits_are_elman_networks_of_g_and_of_k(bias, block):
    """A time constant that is long leaves g, one that is short k; each is a tanh network."""
    module = layer(bptt.cells.CFC)
    rnn = bptt.RNN(3, 5, dtype=torch.float64)
    with torch.no_grad():
        module.bias_ih_l0.chunk(3)[0].fill_(bias)
        for name, p in rnn.named_parameters():
            p.copy_(getattr(module, name).chunk(3)[block])
    x, (h_0,) = given(module.cell)
    for a, b in zip(module(x, h_0), rnn(x, h_0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_it_stays_between_its_two_ends():
    """h is a mean of g and k, both within ±1, whatever the weights: the paper's bound on states."""
    module = layer(bptt.cells.CFC, scale=50.0)
    y, _ = module(100 * given(module.cell)[0])
    assert y.abs().max() <= 1
    assert y.abs().max() > 0.99
