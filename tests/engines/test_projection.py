"""A projection in the native kernels, beside torch.nn's and beside the twin."""

from __future__ import annotations

import pytest
import torch
from paths import using
from torch.nn.utils.rnn import pack_sequence

import bptt
from bptt._src.engines import kernel_library
from bptt.cells import BY_NAME

DOUBLE = torch.float64
SIZES = [
    (4, 3, 5, 7, 3),
    (3, 9, 17, 40, 33),
    (1, 2, 1, 5, 1),
    (2, 20, 9, 150, 77),
    (60, 1, 3, 16, 15),
]


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    with using(request.param) as backend:
        yield backend


def results(module, x, state, **how):
    """The outputs, the final state and all gradients."""
    y, final = module(x, state, **how)
    y = y.data if hasattr(y, "data") and not isinstance(y, torch.Tensor) else y
    given = [x.data if not isinstance(x, torch.Tensor) else x, *state, *module.parameters()]
    loss = y.sin().sum() + sum(s.cos().sum() for s in final)
    return [y, *final, *torch.autograd.grad(loss, given)]


def start(sizes, dtype=DOUBLE):
    T, B, I, H, P = sizes
    torch.manual_seed(3)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    return x, [torch.randn(1, B, n, dtype=dtype, requires_grad=True) for n in (P, H)]


@pytest.mark.parametrize("sizes", SIZES)
def test_agrees_with_torch(sizes, monkeypatch):
    (x, state), (_, _, I, H, P) = start(sizes), sizes
    ours = bptt.LSTM(I, H, proj_size=P, dtype=DOUBLE)
    theirs = torch.nn.LSTM(I, H, proj_size=P, dtype=DOUBLE)
    theirs.load_state_dict(ours.state_dict())
    monkeypatch.delattr("bptt._src.engines.twin.forward")  # the kernels do it
    for a, b in zip(results(ours, x, state), results(theirs, x, state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


WAYS = {
    "cut": {"credit": "truncated:2"},
    "windows": {"credit": "truncated:every=2,reach=3"},
    "weighted and reset": {
        "carry": torch.linspace(0, 1.5, 4, dtype=DOUBLE),
        "resets": torch.tensor([0, 1, 0, 1]) > 0,
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", ["LSTM", "PEEPHOLE_LSTM"])
@pytest.mark.parametrize("sizes", [(4, 3, 5, 7, 3), (4, 9, 17, 40, 51)])
def test_agrees_with_the_twin(sizes, way, cell):
    (x, state), (_, _, I, H, P) = start(sizes), sizes
    module = bptt.Recurrent(BY_NAME[cell], I, H, proj_size=P, dtype=DOUBLE)
    ours = results(module, x, state, **WAYS[way])
    with bptt.kernels.use("twin"):
        theirs = results(module, x, state, **WAYS[way])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_layers_directions_and_packed_sequences():
    torch.manual_seed(3)
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 4, "dtype": DOUBLE}
    ours, theirs = bptt.LSTM(3, 9, **options), torch.nn.LSTM(3, 9, **options)
    theirs.load_state_dict(ours.state_dict())
    packed = pack_sequence([torch.randn(n, 3, dtype=DOUBLE) for n in (6, 6, 4, 1)])
    (a, ends), (b, expected) = ours(packed), theirs(packed)
    for one, other in zip((a.data, *ends), (b.data, *expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_any_number_of_threads_gives_the_same_bits():
    x, state = start((6, 20, 40, 150, 77), torch.float32)
    ours, before = bptt.LSTM(40, 150, proj_size=77), torch.get_num_threads()
    try:
        for low in (False, True):
            found = []
            for number in (1, 2):
                torch.set_num_threads(number)
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    found.append(results(ours, x, state))
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)
