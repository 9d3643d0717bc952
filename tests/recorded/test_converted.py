"""A compiled model whose modules change their class."""

import torch
from torch import nn

import bptt


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.readout = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(self.rnn(x)[0])


def test_a_compiled_model_is_converted_there_and_back():
    compiled, x = torch.compile(Model(), backend="aot_eager"), torch.randn(5, 2, 3)
    before = compiled(x)
    for to, kind in (("bptt", bptt.LSTM), ("torch", nn.LSTM), ("bptt", bptt.LSTM)):
        assert bptt.convert(compiled, to) is compiled
        assert type(compiled.rnn) is kind
        torch.testing.assert_close(compiled(x), before)
    whole = torch.compile(bptt.convert(Model()), backend="aot_eager", fullgraph=True)
    assert whole(x).shape == (5, 2, 2)
