"""Single steps without the module's call: the same bits, and no more than they are for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import bptt
from bptt._src.networks import NAMES, make_network
from bptt._src.stepping import SingleSteps, takes

T, B, I, H = 7, 2, 5, 16
IS_NATIVE = bptt.kernels.backend().name == "native"


@pytest.mark.parametrize("kernels", ["auto", "twin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_calls_of_the_module(name, dtype, kernels):
    """By the native kernels to the bit."""
    is_exact = kernels == "auto" and IS_NATIVE
    agree = torch.equal if is_exact else partial(torch.allclose, atol=1e-6)
    network = make_network(name, I, H, num_layers=2).to(dtype)
    x = torch.randn(T, B, I, dtype=dtype)
    with bptt.kernels.use(kernels):
        assert takes(network)
        _, begin = network(x[:1])
        step, state = SingleSteps(network, begin), begin
        before = [s.clone() for s in (begin if isinstance(begin, tuple) else (begin,))]
        for t in range(1, T):
            expected, state = network(x[t : t + 1], state)
            step(x[t : t + 1])
            assert agree(step.output, expected)
            assert not step.output.requires_grad
            after = state if isinstance(state, tuple) else (state,)
            assert all(map(agree, step.state, after))
        assert all(map(torch.equal, begin if isinstance(begin, tuple) else (begin,), before))


def test_what_is_written_into_the_parameters_is_seen():
    network = bptt.GRU(I, H)
    x, (_, begin) = torch.randn(1, B, I), network(torch.randn(1, B, I))
    step = SingleSteps(network, begin)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.5)
    step(x)
    assert torch.equal(step.output, network(x, begin)[0])


class Loud(bptt.LSTM):
    def forward(self, *given, **how):
        return super().forward(*given, **how)


def listened():
    network = bptt.LSTM(I, H)
    network.register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: bptt.LSTM(I, H, bidirectional=True),
        lambda: bptt.LSTM(I, H, proj_size=3),
        lambda: bptt.LSTM(I, H, num_layers=2, dropout=0.5),
        lambda: bptt.LSTM(I, H).bfloat16(),
        lambda: bptt.LSTM(I, H, device="meta"),
        lambda: nn.LSTM(I, H),
        lambda: Loud(I, H),
        listened,
    ],
)
def test_what_a_call_would_do_otherwise_is_left_to_it(make):
    assert takes(bptt.LSTM(I, H, num_layers=2, dropout=0.5).eval())
    assert not takes(make())


def test_under_autocast_it_is_left_to_the_call():
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(bptt.LSTM(I, H))
