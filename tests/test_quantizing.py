"""torch's dynamic quantization of models that hold our modules."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

import bptt
from bptt.errors import BpttWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


class Model(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.readout = rnn, nn.Linear(16, 4)

    def forward(self, x):
        return self.readout(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [bptt.LSTM, bptt.GRU])
def test_a_module_that_is_passed_by_says_so_and_how_it_is_quantized(kind):
    model, x = Model(kind(8, 16)), torch.randn(5, 2, 8)
    with pytest.warns(BpttWarning, match=r"leaves bptt\.\w+ as it is.*to=\"torch\"\) first"):
        partly = quantize_dynamic(model)
    assert type(partly.rnn) is kind
    assert not isinstance(partly.readout, nn.Linear)
    assert partly(x).shape == (5, 2, 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", BpttWarning)
        whole = quantize_dynamic(bptt.convert(copy.deepcopy(model), to="torch"))
    assert not [w for w in told if issubclass(w.category, BpttWarning)]
    assert "dynamic" in type(whole.rnn).__module__
    torch.testing.assert_close(whole(x), model(x), rtol=0, atol=0.05)


def test_named_by_its_class_it_says_so_too():
    with pytest.warns(BpttWarning, match="leaves bptt"):
        found = quantize_dynamic(Model(bptt.LSTM(8, 16)), {bptt.LSTM})
    assert type(found.rnn) is bptt.LSTM


def test_what_torch_has_no_module_for_says_that():
    for module in (bptt.Recurrent(bptt.cells.MGU, 8, 16), bptt.RNN(8, 16, nonlinearity="sigmoid")):
        with pytest.warns(BpttWarning, match=r"torch\.nn has no such module"):
            quantize_dynamic(Model(module))


def test_the_attribute_is_like_any_other():
    module = bptt.GRU(3, 4)
    assert not hasattr(module, "qconfig")
    with pytest.warns(BpttWarning):
        module.qconfig = None
    assert module.qconfig is None
    assert copy.deepcopy(module).qconfig is None
    del module.qconfig
    assert not hasattr(module, "qconfig")
