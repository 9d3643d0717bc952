"""Modules that are right are not accused, and what could be checked of them was."""

import pytest
import torch
from module_check import sound
from problems import SPIKING
from torch import nn

import bptt
from bptt.cells import BY_NAME
from bptt.checks import ModuleCheck

SMALL = {"steps": 3, "batch": 2}
EVERY = {
    "plain": {},
    "two directions": {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    "batch first": {"num_layers": 2, "batch_first": True, "dropout": 0.5, "bias": False},
}
CASES = [(getattr(nn, name), options) for name in ("RNN", "GRU", "LSTM") for options in EVERY]
CASES += [(bptt.RNN, "plain"), (bptt.GRU, "batch first"), (bptt.LSTM, "two directions")]


def applying(found: ModuleCheck) -> set[str]:
    found.assert_ok()
    return {check.name for check in found.checks if check.verdict == "passed"}


ALWAYS = {
    "repeats, state given", "repeats, no state", "train and eval", "gradients of outputs",
    "gradients of final states", "gradients, no state", "batch", "double backward",
}  # fmt: skip
PIECES = {"two pieces", "single steps"}
DROPS = {"dropout, drawn anew", "dropout, gradients"}


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_networks_of_torch_and_bptt(kind, options):
    options = EVERY[options]
    expected = ALWAYS | {"packed"}
    expected |= set() if "bidirectional" in options else PIECES
    expected |= DROPS if "dropout" in options else set()
    expected |= {"resets"} if "bptt" in kind.__module__ else set()
    assert applying(bptt.check_module(kind(3, 4, **options), **SMALL)) == expected


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_of_torch(name):
    assert applying(bptt.check_module(getattr(nn, name)(3, 4), **SMALL)) == ALWAYS | PIECES


@pytest.mark.parametrize("library", [nn, bptt], ids=["torch.nn", "bptt"])
def test_projections_and_rectifiers(library):
    assert bptt.check_module(library.LSTM(3, 4, num_layers=2, proj_size=2), **SMALL)
    assert bptt.check_module(library.RNN(3, 4, nonlinearity="relu"), **SMALL)


@pytest.mark.parametrize(("engine", "double"), [("native", False), ("twin", True)])
@pytest.mark.parametrize("cell", [name for name in BY_NAME if name not in SPIKING])
def test_every_cell_on_every_engine(cell, engine, double):
    try:
        with bptt.kernels.use(engine):
            found = bptt.check_module(bptt.Recurrent(BY_NAME[cell], 3, 4), double=double, **SMALL)
    except bptt.errors.KernelError:
        pytest.skip("no native kernels here")
    also = set() if double else {"own precision"}
    assert applying(found) == ALWAYS | PIECES | {"packed", "resets"} | also


@pytest.mark.parametrize("kind", [nn.LSTM, bptt.LSTM], ids=["torch.nn", "bptt"])
def test_half_precision_beside_a_double_copy(kind):
    assert applying(bptt.check_module(kind(3, 4).bfloat16(), double=False, **SMALL)) >= {
        "own precision"
    }


SPIKING = {
    "leaky": sound.Leaky,
    "never fires": lambda: sound.Leaky(threshold=400.0),
    "reset inside": sound.ResetInside,
    "rounded": sound.Rounded,
}


@pytest.mark.parametrize("name", SPIKING)
def test_a_surrogate_gradient_is_not_accused(name):
    torch.manual_seed(0)
    found = bptt.check_module(SPIKING[name](), **SMALL)
    assert applying(found) >= PIECES | {"batch"}
    assert found["gradients of outputs"].verdict == "does not apply"
    assert "surrogate" in found["gradients of outputs"].says


def test_liquid_networks_with_spans_of_time():
    x, spans = torch.randn(2, 3, 3), 0.1 + torch.rand(2, 3, 1)
    found = bptt.check_module(sound.ClosedForm(), (x, spans))
    assert applying(found) == ALWAYS | PIECES
    assert "x.0, x.1" in found["gradients of outputs"].says
    cell = bptt.Stepwise(sound.TimeConstants())
    assert applying(bptt.check_module(cell, torch.randn(3, 2, 3))) == ALWAYS | PIECES


def test_a_step_that_bends_is_smooth_enough():
    class Bent(nn.Module):
        input_size = 3

        def forward(self, x, state=None):
            h = x.new_zeros(x.shape[1], 3) if state is None else state
            outputs = []
            for x_t in x:
                h = (x_t + h.abs()).clamp(-1, 1)
                outputs.append(h)
            return torch.stack(outputs), h

    assert {"gradients of outputs"} <= applying(bptt.check_module(Bent(), **SMALL))


def test_batch_norm_is_checked_in_evaluation_mode():
    class Normed(nn.Module):
        input_size = 3

        def __init__(self):
            super().__init__()
            self.norm, self.gru = nn.BatchNorm1d(3), nn.GRU(3, 4)

        def forward(self, x, state=None):
            return self.gru(self.norm(x.flatten(0, 1)).view_as(x), state)

    found = bptt.check_module(Normed(), **SMALL)
    assert "training differs" in found["train and eval"].says
    assert "batch" in applying(found)


def test_complex_numbers_and_integers():
    class Diagonal(nn.Module):
        """Words, and a state that turns: h = λ h + b[word]."""

        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(0.9 * torch.exp(1j * torch.randn(4)))
            self.words = nn.Parameter(torch.randn(10, 4, dtype=torch.complex64))

        def forward(self, x, state=None):
            h = self.words.new_zeros(x.shape[1], 4) if state is None else state
            outputs = []
            for x_t in x:
                h = self.turn * h + self.words[x_t]
                outputs.append(h.real * h.imag)
            return torch.stack(outputs), h

    found = bptt.check_module(Diagonal(), torch.randint(10, (3, 2)))
    assert applying(found) == ALWAYS | PIECES
    assert "too small" not in str(found)
