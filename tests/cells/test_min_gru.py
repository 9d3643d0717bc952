"""The minimal GRU against its closed form: a sum over the steps before."""

from __future__ import annotations

import torch

import bptt


def test_it_is_the_weighted_sum_of_all_candidates():
    """h_T = Π (1 - z) h_0 + Σ_t Π_{s>t} (1 - z_s) z_t n_t, and the gradient of that."""
    torch.manual_seed(0)
    module = bptt.Recurrent(bptt.cells.MIN_GRU, 3, 5, dtype=torch.float64)
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    h_0 = torch.randn(1, 2, 5, dtype=torch.float64)
    _, h_T = module(x, h_0)
    z, n = (x @ module.weight_ih_l0.t() + module.bias_ih_l0).chunk(2, -1)
    z = z.sigmoid()
    passed = (1 - z).flip(0).cumprod(0).flip(0)  # from each step to the end
    later = torch.cat([passed[1:], torch.ones_like(passed[:1])])
    expected = passed[0] * h_0[0] + (later * z * n).sum(0)
    torch.testing.assert_close(h_T[0], expected, rtol=1e-12, atol=1e-12)
    wanted = (module.weight_ih_l0, module.bias_ih_l0)
    for ours, theirs in zip(
        torch.autograd.grad(h_T.cos().sum(), wanted),
        torch.autograd.grad(expected.cos().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
