"""An audit of code that is compiled, before it or within."""

import pytest
import torch
from torch import nn

import bptt

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")


def loop(rnn, head):
    def run():
        state = None
        for x in torch.randn(12, 3, 4).split(4):
            y, (h, c) = rnn(x, state)
            head(y).square().mean().backward()
            state = h.detach(), c.detach()

    return run


def test_a_compiled_model_is_heard_as_it_is_written():
    for make in (nn.LSTM, bptt.LSTM):
        rnn, head = make(4, 6), nn.Linear(6, 1)
        compiled = torch.compile(rnn)
        run = loop(compiled, torch.compile(head))
        run()
        for which in (compiled, rnn, make):
            report = bptt.audit(run, which)
            assert report.is_("truncated:4")
            assert report.faults == ()
        run()  # compiled again, as before


def test_what_the_run_compiles_leaves_the_module_out():
    rnn = nn.GRU(4, 6)

    def run():
        model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        y, _ = rnn(model(torch.randn(5, 3, 4)))
        y.square().mean().backward()

    assert bptt.audit(run, nn.GRU).is_("full")
