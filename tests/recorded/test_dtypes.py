"""What is compiled returns the dtypes that an eager call does."""

import pytest
import torch

import bptt

MODULES = [bptt.RNN(3, 4), bptt.GRU(3, 4), bptt.LSTM(3, 4), bptt.LSTM(3, 4, proj_size=2)]


@pytest.fixture(autouse=True)
def _compile_anew():
    torch._dynamo.reset()


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast(module, backend):
    compiled, x = torch.compile(module, backend=backend, fullgraph=True), torch.randn(5, 2, 3)
    found = []
    for run in (module, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = run(x)
        found.append([y, *(state if isinstance(state, tuple) else (state,))])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3)])
def test_the_final_states_can_be_detached_in_place(module, shape):
    y, state = torch.compile(module, backend="aot_eager", fullgraph=True)(torch.randn(shape))
    assert y.requires_grad
    for s in state if isinstance(state, tuple) else (state,):
        s.detach_()
