"""The independently recurrent network against its paper."""

from __future__ import annotations

import torch
from cells.from_papers import B, H, check_as_the_paper, given, layer

import bptt


def paper(module, x, state):
    ((W, b),), u = [(module.weight_ih_l0, module.bias_ih_l0)], module.weight_units_l0[0]
    h, all_h = state[0][0], []
    for x_t in x:
        h = torch.relu(x_t @ W.T + u * h + b)
        all_h.append(h)
    return torch.stack(all_h), h[None]


def test_it_is_that_of_the_paper():
    check_as_the_paper(bptt.cells.INDRNN, paper, scale=2.0)


def test_a_gradient_over_n_steps_is_the_nth_power_of_u():
    """∂h_T/∂h_0 = u^T while a unit is on, and nothing of the other units (eq. 4 there)."""
    module = layer(bptt.cells.INDRNN)
    with torch.no_grad():
        module.weight_units_l0.copy_(torch.linspace(0.5, 1.05, H))
        module.bias_ih_l0.fill_(20.0)
    x, (h_0,) = given(module.cell, steps=30)
    _, h_T = module(x, h_0)
    (d,) = torch.autograd.grad(h_T[0, 0, 2], h_0)
    expected = torch.zeros(1, B, H, dtype=torch.float64)
    expected[0, 0, 2] = module.weight_units_l0[0, 2].detach() ** 30
    torch.testing.assert_close(d, expected, rtol=1e-12, atol=0)


def test_u_begins_between_0_and_1_and_b_at_0():
    module = bptt.Recurrent(bptt.cells.INDRNN, 10, 1000, num_layers=2, bidirectional=True)
    for name, w in module.named_parameters():
        if "units" in name:
            u, _ = w.detach().flatten().sort()
            assert u[0] >= 0
            assert u[-1] <= 1
            uniform = (torch.arange(1000) + 0.5) / 1000
            assert float((u - uniform).abs().max()) < 1.63 / 1000**0.5  # Kolmogorov-Smirnov, 1 %
        elif "bias" in name:
            assert not w.any()
        elif "weight_ih" in name:  # as torch.nn's
            assert 0.9 < float(w.detach().abs().max()) * 1000**0.5 <= 1
