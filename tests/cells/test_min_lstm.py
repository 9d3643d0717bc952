"""The minimal LSTM against its closed form: a sum over the steps before."""

from __future__ import annotations

import torch

import bptt

double = {"dtype": torch.float64}


def test_it_is_the_weighted_sum_of_all_candidates():
    """h_T = Π f' h_0 + Σ_t Π_{s>t} f'_s i'_t g_t, f' = f/(f+i), and the gradient of that."""
    torch.manual_seed(0)
    module = bptt.Recurrent(bptt.cells.MIN_LSTM, 3, 5, **double)
    x, h_0 = torch.randn(9, 2, 3, **double), torch.randn(1, 2, 5, **double)
    _, h_T = module(x, h_0)
    f, i, g = (x @ module.weight_ih_l0.t() + module.bias_ih_l0).chunk(3, -1)
    f, i = f.sigmoid(), i.sigmoid()
    passed = (f / (f + i)).flip(0).cumprod(0).flip(0)  # from each step to the end
    later = torch.cat([passed[1:], torch.ones_like(passed[:1])])
    expected = passed[0] * h_0[0] + (later * i / (f + i) * g).sum(0)
    torch.testing.assert_close(h_T[0], expected, rtol=1e-12, atol=1e-12)
    wanted = (module.weight_ih_l0, module.bias_ih_l0)
    for ours, theirs in zip(
        torch.autograd.grad(h_T.cos().sum(), wanted),
        torch.autograd.grad(expected.cos().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_it_stays_finite_where_both_gates_are_closed():
    """f/(f+i) is 1/2 for f = i = σ(-1000), which is 0 in float32."""
    x = (torch.full((1, 1), -1000.0), torch.full((1, 1), -1000.0), torch.full((1, 1), 3.0))
    (h,) = bptt.cells.MIN_LSTM.equations(x, (), (torch.ones(1, 1),), ())
    torch.testing.assert_close(h, torch.full((1, 1), 2.0))


def test_chrono_makes_the_share_that_is_kept_the_forget_gate_itself():
    """b_i = -b_f makes f + i = 1 where x = 0."""
    module = bptt.init.chrono_(bptt.Recurrent(bptt.cells.MIN_LSTM, 2, 4, **double), longest=50)
    h = torch.ones(1, 1, 4, **double)
    with torch.no_grad():
        module.bias_ih_l0[8:] = 0
        _, after = module(torch.zeros(1, 1, 2, **double), h)
    torch.testing.assert_close(after[0, 0], module.bias_ih_l0[:4].sigmoid())
