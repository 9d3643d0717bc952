"""Calls with cuts and resets as calls of torch's own function: as on a GPU, here anywhere."""

from __future__ import annotations

import pytest
import torch

import bptt
from bptt._src import layers, pieces

double = {"dtype": torch.float64}
MODULES = {
    "RNN": lambda **o: bptt.RNN(3, 4, **o, **double),
    "GRU": lambda **o: bptt.GRU(3, 4, **o, **double),
    "LSTM": lambda **o: bptt.LSTM(3, 4, **o, **double),
    "projection": lambda **o: bptt.LSTM(3, 4, proj_size=2, **o, **double),
}
T, B = 9, 5


def resets(*, together=False, begin=False):
    found = torch.rand(T, 1 if together else B).expand(T, B) < 0.3
    found = found.clone()
    found[0] = begin
    return found


HOW = {
    "truncated": lambda: {"credit": "truncated:4"},
    "reset together": lambda: {"resets": resets(together=True)},
    "cut and reset together": lambda: {"credit": "truncated:3", "resets": resets(together=True)},
    "reset each by itself": lambda: {"resets": resets()},
    "some from the beginning": lambda: {"resets": resets() | (torch.rand(T, B) < 0.2)},
    "all from the beginning": lambda: {"resets": resets(begin=True)},
    "resets, none": lambda: {"resets": torch.zeros(T, B, dtype=torch.bool)},
}


def run(network, x, hx, how):
    torch.manual_seed(1)
    given = x.clone().requires_grad_()
    begin = [s.clone().requires_grad_() for s in hx]
    y, final = network(given, tuple(begin) if len(begin) > 1 else begin[0], **how)
    final = final if isinstance(final, tuple) else (final,)
    loss = y.sin().sum() + sum(s.square().sum() for s in final)
    return y, *final, *torch.autograd.grad(loss, [given, *begin, *network.parameters()])


@pytest.fixture
def called(monkeypatch):
    """Every tensor passes for one on a GPU; and which pieces were run."""
    calls, by_torch = [], pieces.by_torch

    def noted(module):
        call = by_torch(module)
        return lambda x, state: calls.append(x) or call(x, state)

    monkeypatch.setattr(pieces, "by_torch", noted)

    def pass_for(on_gpu: bool) -> None:
        monkeypatch.setattr(layers, "is_cut_for_torch", lambda *_: on_gpu)

    return calls, pass_for


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MODULES)
def test_the_same_as_without(name, how, first, called):
    calls, pass_for = called
    network, call = MODULES[name](num_layers=2, batch_first=first), HOW[how]()
    x = torch.randn(T, B, 3, **double)
    hx = [torch.randn(2, B, n, **double) for n in network._state_sizes()]
    if first:
        x = x.transpose(0, 1)
        call = {k: v.t() if k == "resets" else v for k, v in call.items()}
    pass_for(False)
    expected = run(network, x, hx, call)
    pass_for(True)
    torch.testing.assert_close(run(network, x, hx, call), expected)
    assert calls
    by_itself = "by itself" in how or "from the beginning" in how
    assert isinstance(calls[0], torch.nn.utils.rnn.PackedSequence) == by_itself


@pytest.mark.parametrize(
    "call",
    [
        {"carry": torch.full((T,), 0.5, **double)},
        {"carry": (torch.arange(T * B).view(T, B) % 3 > 0).to(torch.float64)},
        {"credit": "truncated:every=2,reach=4"},
    ],
)
def test_what_it_cannot_do_is_left_to_the_engines(call, called):
    calls, pass_for = called
    network, x = MODULES["LSTM"](), torch.randn(T, B, 3, **double)
    hx = [torch.randn(1, B, 4, **double) for _ in range(2)]
    pass_for(False)
    expected = run(network, x, hx, call)
    pass_for(True)
    torch.testing.assert_close(run(network, x, hx, call), expected)
    assert not calls


def test_unbatched(called):
    _, pass_for = called
    network, x = MODULES["GRU"](), torch.randn(T, 3, **double)
    starts = torch.rand(T) < 0.3
    pass_for(False)
    expected = network(x, resets=starts)
    pass_for(True)
    torch.testing.assert_close(network(x, resets=starts), expected)


def test_only_on_a_gpu():
    rows = layers.Layers._rows(MODULES["LSTM"](), torch.randn(T, B, 3, **double))
    assert not pieces.is_cut_for_torch(MODULES["LSTM"](), rows)
