"""Modules inside what torch writes down of a network: ``torch.fx`` and ONNX."""

from __future__ import annotations

import warnings

import onnx
import onnxruntime
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


class Outputs(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        return self.recurrent(x)[0]


# Torch exports no projection by TorchScript, and by torch.export one that does not load; an RNN it
# lays out step by step there.
@pytest.mark.parametrize(
    ("name", "by_export"),
    [("GRU", True), ("LSTM", True)]
    + [(name, False) for name in ("RNN", "relu RNN", "GRU", "LSTM")],
)
def test_onnx_with_a_batch_that_may_vary(name, by_export, tmp_path):
    network, path = Outputs(MODULES[name](num_layers=2)).eval(), tmp_path / "network.onnx"
    options = {"dynamic_shapes": ({1: torch.export.Dim("batch", min=1, max=64)},)}
    if not by_export:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {1: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its older exporter and its tracing
        torch.onnx.export(network, (torch.randn(7, 2, 3),), path, dynamo=by_export, **options)
    graph = onnx.load(path).graph
    assert graph.input[0].type.tensor_type.shape.dim[1].dim_param
    assert len(graph.node) < 40  # and not one for each step
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 9):
        x = torch.randn(7, batch, 3)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), network(x), rtol=1e-5, atol=1e-6)


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
