"""The linear recurrent network, whose gradients have a closed form, in NumPy without autograd.

Dive into Deep Learning, 9.7: with h_t = W_hx x_t + W_hh h_{t-1} and o_t = W_qh h_t,

    ∂L/∂h_t = Σ_{i=t..T} (W_hhᵀ)^{T-i} W_qhᵀ ∂L/∂o_{T+t-i}

where the term of the loss at step T+t-i is one of those that a credit weighs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bptt
from bptt import Full, Plan, Truncated

T, I, H, Q = 9, 2, 3, 2
power = np.linalg.matrix_power


class Linear:
    """A ReLU network that never leaves its positive half is one."""

    def __init__(self):
        rng = np.random.default_rng(4)
        self.W_hx, self.W_hh, self.W_qh = (rng.uniform(0.1, 1, s) for s in [(H, I), (H, H), (Q, H)])
        self.W_hh /= np.linalg.norm(self.W_hh, 2)  # what flows back does not vanish
        self.x, self.h_0 = rng.uniform(0.1, 1, (T, I)), rng.uniform(0.1, 1, H)
        self.target = rng.uniform(-1, 1, (T, Q))

    def closed_form(self, plan):
        """Gradients of L = Σ_t ‖o_t - target_t‖² / 2, each term weighed by W[t, s]."""
        h = [
            power(self.W_hh, t + 1) @ self.h_0
            + sum(power(self.W_hh, t - s) @ self.W_hx @ self.x[s] for s in range(t + 1))
            for t in range(T)
        ]
        d_o = [self.W_qh @ h[t] - self.target[t] for t in range(T)]

        def flows(t, s):  # from the loss at t to the state at s
            return power(self.W_hh.T, t - s) @ self.W_qh.T @ d_o[t]

        W, initial = plan.matrix(), plan.of_initial_state()
        d_h = [sum(W[t, s] * flows(t, s) for t in range(s, T)) for s in range(T)]
        before = [self.h_0, *h]
        return [
            sum(np.outer(d_h[s], self.x[s]) for s in range(T)),
            sum(np.outer(d_h[s], before[s]) for s in range(T)),
            np.stack([self.W_hx.T @ d_h[s] for s in range(T)]),
            sum(initial[t] * flows(t, -1) for t in range(T)),
        ]

    def by_the_module(self, credit):
        rnn = bptt.RNN(I, H, nonlinearity="relu", bias=False, dtype=torch.float64)
        with torch.no_grad():
            rnn.weight_ih_l0.copy_(torch.from_numpy(self.W_hx))
            rnn.weight_hh_l0.copy_(torch.from_numpy(self.W_hh))
        x, h_0 = (torch.from_numpy(a).requires_grad_() for a in (self.x, self.h_0[None]))
        h, _ = rnn(x, h_0, credit=credit)
        assert (h > 0).all()
        o = h @ torch.from_numpy(self.W_qh).T
        loss = (o - torch.from_numpy(self.target)).square().sum() / 2
        found = torch.autograd.grad(loss, [rnn.weight_ih_l0, rnn.weight_hh_l0, x, h_0])
        return [*(g.numpy() for g in found[:-1]), found[-1][0].numpy()]


@pytest.mark.parametrize(
    "credit",
    [
        Full(),
        Truncated(1),
        Truncated(4),
        Truncated(every=1, reach=4),
        Truncated(every=2, reach=5),
        Truncated(every=4, reach=6),
        Plan(T, carry=np.linspace(0.6, 1.2, T)),
    ],
    ids=["full", "1", "4", "1 of 4", "2 of 5", "4 of 6", "factors"],
)
def test_the_gradients_are_those_of_the_closed_form(credit):
    linear = Linear()
    ours = linear.by_the_module(credit)
    for found, expected in zip(ours, linear.closed_form(credit.plan(T)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    if not credit.plan(T).is_full:
        for found, full in zip(ours, linear.closed_form(Plan(T)), strict=True):
            assert np.linalg.norm(found - full) > 0.01 * np.linalg.norm(full)
