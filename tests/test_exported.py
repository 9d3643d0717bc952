"""Modules inside what ``torch.fx`` writes down of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bptt

MODULES = {
    "RNN": lambda **options: bptt.RNN(3, 5, **options),
    "relu RNN": lambda **options: bptt.RNN(3, 5, nonlinearity="relu", **options),
    "GRU": lambda **options: bptt.GRU(3, 5, **options),
    "LSTM": lambda **options: bptt.LSTM(3, 5, **options),
    "LSTM with a projection": lambda **options: bptt.LSTM(3, 5, proj_size=2, **options),
}
EACH = pytest.mark.parametrize("name", MODULES)


@EACH
def test_fx_takes_a_module_as_a_leaf_as_it_does_torchs(name):
    network = nn.Sequential(MODULES[name]())
    traced = torch.fx.symbolic_trace(network)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(traced(x), network(x), rtol=0, atol=0)


class WithAll(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = bptt.LSTM(3, 5)

    def forward(self, x, h, c, resets):
        y, (h, c) = self.recurrent(x, (h, c), resets=resets, credit="truncated:2")
        return y, h, c


def test_fx_keeps_the_state_the_resets_and_the_credit():
    network = WithAll()
    traced = torch.fx.symbolic_trace(network)
    x, h, c = torch.randn(6, 2, 3), torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    resets = torch.rand(6, 2) < 0.3
    found, expected = traced(x, h, c, resets), network(x, h, c, resets)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = list(network.parameters())
    found, expected = (torch.autograd.grad(y[0].square().sum(), weights) for y in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
