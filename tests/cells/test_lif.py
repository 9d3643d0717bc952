"""The spiking neuron against its papers."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from cells.from_papers import I, blocks, check_as_the_paper, given, layer

import bptt
from bptt.cells import LIF, make_lif


def paper(beta, threshold, slope):
    class Theta(torch.autograd.Function):
        """The step function, with SuperSpike's derivative in the backward pass."""

        @staticmethod
        def forward(ctx, U):
            ctx.save_for_backward(U)
            return (U > 0).to(U.dtype)

        @staticmethod
        def backward(ctx, d):
            (U,) = ctx.saved_tensors
            return d * (slope * U.abs() + 1.0) ** -2

    def run(module, x, state):
        ((W, b, V, c),) = blocks(module)
        (S, U), all_S = (s[0] for s in state), []
        for x_t in x:
            current = x_t @ W.T + b + S @ V.T + c
            U = beta * U + current - S.detach() * threshold
            S = Theta.apply(U - threshold)
            all_S.append(S)
        return torch.stack(all_S), S[None], U[None]

    return run


@pytest.mark.parametrize("constants", [(0.9, 1.0, 10.0), (0.5, 0.3, 2.0)], ids=str)
def test_it_is_that_of_the_papers(constants):
    cell = LIF if constants == (0.9, 1.0, 10.0) else make_lif(*constants)
    module = layer(cell, 4.0)
    x, (s, v) = given(cell)
    rates = module(x, (s.gt(0).double(), v))[0].detach().mean((0, 1))
    assert 0.05 < rates.mean() < 0.95  # there are spikes, and pauses
    check_as_the_paper(cell, paper(*constants), scale=4.0)


def constant_current(cell, current, steps):
    """Spikes and potential of a neuron with no weights but its input's."""
    module = bptt.Recurrent(cell, 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
        module.weight_hh_l0.zero_()
        y, _, ((_, all_v),) = module(
            torch.full((steps, 1, 1), current, dtype=torch.float64), return_states=True
        )
    return y.flatten(), all_v.flatten()


def test_below_threshold_it_is_a_leaky_integrator():
    """v_t = I (1 - β^t) / (1 - β), which stays below ϑ."""
    spikes, v = constant_current(LIF, 0.09, 50)
    assert not spikes.any()
    t = torch.arange(1, 51, dtype=torch.float64)
    torch.testing.assert_close(v, 0.09 * (1 - 0.9**t) / (1 - 0.9), rtol=1e-12, atol=1e-12)


def test_the_first_spike_is_when_the_integral_crosses_the_threshold():
    spikes, _ = constant_current(LIF, 0.2, 50)
    first = math.ceil(math.log(1 - 1.0 * (1 - 0.9) / 0.2) / math.log(0.9))
    assert int(spikes.argmax()) + 1 == first == 7


def test_without_a_leak_no_charge_is_lost():
    """Reset by subtraction: with β = 1, input = spikes · ϑ + what is left."""
    spikes, v = constant_current(make_lif(beta=1, threshold=0.7), 0.31, 200)
    charge = 0.31 * torch.arange(1, 201, dtype=torch.float64)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), spikes.cumsum(0)[:-1]])
    torch.testing.assert_close(v, charge - 0.7 * before, rtol=0, atol=1e-9)
    assert v.max() <= 0.7 + 0.31
    assert abs(float(spikes.sum()) - 200 * 0.31 / 0.7) <= 1.5


def test_a_gradient_comes_through_where_nothing_spikes():
    module = layer(make_lif(threshold=5.0))
    x, _ = given(LIF)
    y, _ = module(x)
    assert not y.any()
    y.sum().backward()
    assert module.weight_ih_l0.grad.abs().min() > 0


def test_bptt_check_module_knows_its_gradient_for_a_surrogate():
    found = bptt.check_module(layer(LIF, 4.0), torch.randn(4, 2, I, dtype=torch.float64))
    print(found)
    assert "surrogate" in str(found)


def test_they_are_pickled():
    assert pickle.loads(pickle.dumps(LIF)) is LIF
    again = pickle.loads(pickle.dumps(layer(make_lif(0.3), 4.0)))
    x, state = given(LIF)
    assert torch.equal(again(x, state)[0], layer(make_lif(0.3), 4.0)(x, state)[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta": 1.5}, "beta must be from 0 to 1, got 1.5"),
        ({"threshold": 0}, "threshold must be above 0, got 0"),
        ({"slope": -1}, "slope must be above 0, got -1"),
    ],
)
def test_constants_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        make_lif(**options)
