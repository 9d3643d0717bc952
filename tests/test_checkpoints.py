"""What others save and load: whole modules, credits, plans and streams."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import bptt
from bptt.credit import Decay
from bptt.errors import ConfigError


def measured():
    credit = bptt.Adaptive(0.1)
    halves = 0.5 ** np.arange(100.0)
    credit.observe(Decay(norms=halves[None], sums=2 - halves))
    return credit


def own_equations(x, h, state, units):
    return (torch.tanh(x[0] + h[0]),)


OWN = bptt.Cell("OWN", 1, 1, own_equations)
MODULES = [
    *(bptt.LSTM(3, 4, proj_size=2), bptt.GRU(3, 4, 2, bidirectional=True)),
    *(bptt.RNN(3, 4, nonlinearity="sigmoid"), bptt.Recurrent(bptt.cells.PEEPHOLE_LSTM, 3, 4)),
]
OPTIONS = [
    *(bptt.Full(), bptt.Truncated(3), bptt.Truncated(every=2, reach=4), bptt.Randomized(3)),
    *(bptt.Randomized(pi=[0.5, 0.6]), measured(), bptt.Recompute("64MB"), bptt.Store()),
]
PLANS = [bptt.Truncated(every=1, reach=3).plan(6), bptt.Randomized(3).plan(5, 2)]


def reloaded(thing, path):
    torch.save(thing, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_whole_module(module, tmp_path):
    x, there = torch.randn(5, 2, 3), reloaded(module, tmp_path / "module.pt")
    assert type(there) is type(module)
    assert there.cell is module.cell
    assert torch.equal(there(x, credit="truncated:2")[0], module(x)[0])


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_credit_among_hyperparameters(option, tmp_path):
    given = {"hyper_parameters": {"hidden": 8, "option": option}, "epoch": 3}
    there = reloaded(given, tmp_path / "last.ckpt")["hyper_parameters"]["option"]
    assert there == option
    assert repr(there) == repr(option)
    assert getattr(there, "spelled", None) == getattr(option, "spelled", None)


@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_a_plan(plan, tmp_path):
    for there in (reloaded(plan, tmp_path / "plan.pt"), copy.deepcopy(plan)):
        assert np.array_equal(there.carry, plan.carry)
        assert there.blocks == plan.blocks
        assert str(there) == str(plan)


def test_what_is_read_is_known_as_soon_as_a_name_of_the_core_is_asked_for(tmp_path):
    torch.save(bptt.Truncated(3), tmp_path / "credit.pt")
    code = "import sys, torch, bptt\nbptt.LSTM\nprint(torch.load(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "credit.pt"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "Truncated(3)", done.stderr


def test_cells_of_bptt_are_pickled_by_their_name_and_others_by_their_equations(tmp_path):
    for cell in bptt.cells.CELLS:
        assert pickle.loads(pickle.dumps(cell)) is cell
        assert copy.copy(cell) is cell
    network, x = bptt.Recurrent(OWN, 3, 4), torch.randn(5, 2, 3)
    there = pickle.loads(pickle.dumps(network))
    assert torch.equal(there(x)[0], network(x)[0])
    with pytest.raises(pickle.UnpicklingError, match=r"add_safe_globals.*own_equations"):
        reloaded(network, tmp_path / "module.pt")
    with torch.serialization.safe_globals([own_equations]):
        there = reloaded(network, tmp_path / "module.pt")
    assert torch.equal(there(x)[0], network(x)[0])


# --------------------------------------------------------------------------------- a stream


CREDIT = bptt.Truncated(every=2, reach=5)


def advanced(network):
    """A stream whose state, past and resets are all there, and the next window."""
    stream, starts = bptt.Stream(), torch.zeros(2, 2, dtype=torch.bool)
    starts[1, 0] = True
    for window in torch.randn(4, 2, 2, 3):
        _, stream = stream.advance(network, window, credit=CREDIT, resets=starts)
    return stream, torch.randn(2, 2, 3)


def same_next(network, one, other, window):
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert type(a) is type(b)
    first, second = (s.advance(network, window, credit=CREDIT)[0] for s in (one, other))
    return torch.equal(first, second)


@pytest.mark.parametrize("network", [bptt.LSTM(3, 4), bptt.GRU(3, 4)], ids=str)
def test_a_stream_is_saved_and_goes_on(network, tmp_path):
    stream, window = advanced(network)
    assert list(stream.state_dict()) == ["state", "past", "before", "resets"]
    there = bptt.Stream()
    there.load_state_dict(reloaded(stream.state_dict(), tmp_path / "stream.pt"))
    assert same_next(network, there, stream, window)
    assert same_next(network, reloaded(stream, tmp_path / "whole.pt"), stream, window)
    assert same_next(network, copy.deepcopy(stream), stream, window)


@pytest.mark.parametrize("given", [{}, {"state": None}, {"model": 1, **bptt.Stream().state_dict()}])
def test_another_state_dict_is_refused(given):
    with pytest.raises(ConfigError, match="expected the entries before, past, resets, state"):
        bptt.Stream().load_state_dict(given)


def test_a_stream_moves():
    network = bptt.LSTM(3, 4)
    stream, window = advanced(network)
    double = stream.to(torch.float64)
    assert double.past.dtype == double.state[1].dtype == torch.float64
    assert double.resets.dtype == torch.bool
    y, _ = double.advance(copy.deepcopy(network).double(), window.double(), credit=CREDIT)
    expected, _ = stream.advance(network, window, credit=CREDIT)
    torch.testing.assert_close(y.float(), expected)
    there = stream.to("meta", dtype=torch.float64)
    assert there.before[0].is_meta
    assert there.resets.is_meta
    assert stream.past.dtype == torch.float32
    tokens = bptt.Stream(past=torch.arange(3)).to(torch.float64)
    assert tokens.past.dtype == torch.int64
    with pytest.raises(TypeError):
        stream.to(torch.int64)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_distributed_checkpoint(tmp_path):
    network = bptt.LSTM(3, 4, 2)
    stream, window = advanced(network)
    dcp.save({"model": network.state_dict(), "stream": stream}, checkpoint_id=tmp_path / "dcp")
    again = bptt.LSTM(3, 4, 2)
    there = advanced(again)[0]  # its tensors are the places to be filled
    places = {"model": again.state_dict(), "stream": there}
    dcp.load(places, checkpoint_id=tmp_path / "dcp")
    for a, b in zip(again.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert same_next(again, there, stream, window)
    with pytest.raises(CheckpointException, match=r"stream\.past, expected BytesStorage"):
        dcp.load({"stream": bptt.Stream()}, checkpoint_id=tmp_path / "dcp")
