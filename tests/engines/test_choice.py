"""One list of engines: each serves a call or says why not, and the first that serves runs."""

from __future__ import annotations

import pytest
import torch
from paths import using
from torch._subclasses import FakeTensorMode

from bptt._src.engines import looped, native, reference, twin
from bptt._src.engines.backend import ENGINES, engine_for
from bptt._src.engines.call import Call, Engine, FlowCall, Incoming, Saved
from bptt._src.engines.readout import Readout
from bptt._src.engines.windows import windows_of
from bptt._src.steps import Steps
from bptt.cells import BY_NAME, CELLS, Cell, Weights
from bptt.credit import Block


def a_call(cell="GRU", dtype=torch.float32, rows=3, units=False, **more):
    of = BY_NAME[cell] if isinstance(cell, str) else cell
    H, X, R = 4, of.gates_x * 4, of.gates_h * 4
    w = Weights(torch.zeros(X, 2, dtype=dtype), torch.zeros(R, H, dtype=dtype))
    if units and of.units:
        w = w._replace(units=torch.zeros(of.units, H, dtype=dtype))
    state = tuple(torch.zeros(1, H, dtype=dtype) for _ in range(of.states))
    return Call(of, torch.zeros(rows, 2, dtype=dtype), state, w, Steps((1,) * rows), **more)


def a_readout(dtype=torch.float32, device="cpu"):
    zeros = torch.zeros(3, 2, dtype=dtype, device=device)
    return Readout(zeros, zeros, None, torch.zeros(3, dtype=torch.int64, device=device))


@pytest.fixture(autouse=True)
def natively():
    with using("native"):
        yield


def test_each_is_an_engine():
    for engine in ENGINES:
        assert isinstance(engine, Engine)
        assert engine.serves(a_call()) is None
        assert (engine.serves(a_readout()) is None) == (engine is not looped)


MINE = Cell("MINE", 3, 3, BY_NAME["GRU"].equations)
PROJECTED = a_call("RNN_TANH")._replace(  # the LSTMs have one
    w=Weights(torch.zeros(4, 2), torch.zeros(4, 2), hr=torch.zeros(2, 4))
)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (a_call(dtype=torch.bfloat16), "torch.bfloat16"),
        (a_call(rows=0), "empty"),
        (a_call()._replace(w=a_call(dtype=torch.float64).w), "torch.float64"),
        (a_readout(torch.bfloat16), "torch.bfloat16"),
    ],
)
def test_what_native_kernels_leave_to_the_twin_and_why(call, reason):
    assert reason in native.serves(call)
    assert engine_for(call) is twin


@pytest.mark.parametrize(("call", "reason"), [(a_call(MINE), "MINE"), (PROJECTED, "projection")])
def test_what_runs_natively_as_a_program_and_why(call, reason):
    assert reason in native.serves(call)
    assert engine_for(call) is looped


@pytest.mark.parametrize("call", [a_call(), a_readout()], ids=["sequence", "readout"])
def test_what_only_autograd_can_do_goes_through_the_reference(call):
    assert engine_for(call) is native
    with using("twin"):
        assert engine_for(call) is twin
    complex_one = call._replace(**{call._fields[isinstance(call, Call)]: torch.zeros(3, 2) * 1j})
    for engine in (native, twin):
        assert "complex" in engine.serves(complex_one)
    assert engine_for(complex_one) is reference
    with FakeTensorMode():
        assert "mode" in native.serves(call)
        assert engine_for(call) is reference
        assert engine_for(call, recorded=False) is twin


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_engine_goes_back_alike(cell):
    torch.manual_seed(0)
    empty = a_call(cell, torch.float64, units=True)
    drawn = (None if t is None else torch.randn_like(t) for t in empty.tensors())
    call = empty.filled(tuple(drawn))
    needed = tuple(t is not None for t in call.tensors())
    found = []
    for engine in ENGINES if cell.is_native else ENGINES[1:]:
        y, final, kept = engine.forward(call, keep=True)
        d_state = tuple(s.clone() for s in final)
        back = engine.backward(call, Saved(y, kept), Incoming(y.cos(), d_state, needed))
        gradients = (back.x, *back.state, *back.w)
        there = [t for t in gradients if t is not None and t.numel()]
        found.append([y, *final, *there])
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-11, atol=1e-12)


def test_the_flow_is_chosen_alike():
    of, many = a_call(), Cell("MANY", 1, 1, lambda x, h, s, u: s, states=3)
    assert engine_for(FlowCall(of.cell, of.x, of.w)) is native
    assert "3 states of MANY" in native.serves(FlowCall(many, of.x, of.w))
    assert engine_for(FlowCall(of.cell, of.x.half(), of.w)) is twin
    with using("twin"):
        assert engine_for(FlowCall(of.cell, of.x, of.w)) is twin


def test_labels_without_values_are_left_to_torch():
    assert "meta" in twin.serves(a_readout(device="meta"))
    assert engine_for(a_readout(device="meta")) is reference


def test_where_no_engine_serves_the_last_one_says_why():
    windows = windows_of((Block(0, 2, 0), Block(2, 3, 1)), (1, 1, 1))
    call = a_call(windows=windows)._replace(x=torch.zeros(3, 2) * 1j)
    with pytest.raises(NotImplementedError, match=r"windows that overlap \(every < reach\)"):
        engine_for(call)
    assert engine_for(a_call(windows=windows)) is native
