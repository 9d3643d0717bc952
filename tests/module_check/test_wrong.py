"""Each mistake is found, by the check that is for it, at the right step, in the right tensor."""

from typing import NamedTuple

import pytest
import torch
from module_check import broken, sound
from torch import nn

import bptt

SMALL = {"steps": 4, "batch": 2}


class Expected(NamedTuple):
    check: str
    """The first check that is wrong."""
    of: str
    by: str | None
    t: int | None
    s: int | None
    others: set[str] = frozenset()
    """Further checks that must find it."""
    alone: bool = False
    """Whether no other check may find anything."""


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    if issubclass(kind, broken.OneStepAtATime):
        return kind()
    drops = kind.__name__.startswith("Drops")
    return kind(3, 4, num_layers=2, dropout=0.5) if drops else kind(3, 4)


WRONG = {
    broken.FinalStateWithoutGradient: Expected(
        "gradients of final states", "h_n", "x", 3, 0, {"single steps"}
    ),
    broken.FinalCellWithoutGradient: Expected(
        "gradients of final states", "c_n", "x", 3, 0, {"single steps"}
    ),
    broken.GateWithWrongDerivative: Expected("gradients of outputs", "y", "x", 0, 0),
    broken.NothingFromFurtherThanTwoSteps: Expected(
        "gradients of outputs", "y", "x", 3, 0, {"two pieces", "single steps"}
    ),
    broken.InitialStateWithoutItsFirstStep: Expected("gradients of outputs", "y", "h_0", 0, None),
    broken.BiasCountedTwice: Expected("gradients of outputs", "y", "bias_hh", 2, 0),
    broken.BiasCountedTwiceAlways: Expected("gradients of outputs", "y", "bias_hh", 0, 0),
    broken.DropoutMaskDrawnAgain: Expected("dropout, gradients", "y", "x", 0, 0, alone=True),
    broken.DropoutIgnoredInBackward: Expected("dropout, gradients", "y", "x", 0, 0, alone=True),
    broken.DropsInEvaluation: Expected("train and eval", "y", None, 0, None, alone=True),
    broken.RowsMixed: Expected("batch", "y", None, 0, None, alone=True),
    broken.RowsMixedBackwards: Expected("gradients of outputs", "y", "x", 0, 0, {"batch"}),
    broken.PaddingLeaks: Expected("packed", "h_n", None, 3, None, alone=True),
    broken.ResetsLetGradientThrough: Expected("resets", "y", "x", 1, 0, alone=True),
    broken.ResetsOneStepLate: Expected("resets", "y", None, 1, None, alone=True),
    broken.StateOfAnotherStep: Expected("two pieces", "y", None, 2, None, {"single steps"}),
    broken.RemembersTheLastCall: Expected("repeats, no state", "y", None, 0, None, alone=True),
    broken.SecondDerivativeMissing: Expected(
        "double backward", "(gradient of y)", "x", 0, 0, alone=True
    ),
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_the_first_wrong_number_is_named(kind):
    expected = WRONG[kind]
    found = bptt.check_module(made(kind), **SMALL)
    assert not found
    assert found.wrong[0].name == expected.check
    problem = found.problem
    assert (problem.of, problem.by, problem.t, problem.s) == expected[1:5]
    assert problem.error > 1e-6
    assert expected.others <= {check.name for check in found.wrong}
    assert not expected.alone or len(found.wrong) == 1


UNNUMBERED = {
    broken.SameMaskInEveryCall: "train and eval",
    broken.DropsNothing: "train and eval",
    broken.StateChangedInPlace: "repeats, state given",
}


@pytest.mark.parametrize("kind", UNNUMBERED, ids=lambda kind: kind.__name__)
def test_what_no_number_shows_is_named(kind):
    found = bptt.check_module(made(kind), **SMALL)
    assert found.wrong[0].name == UNNUMBERED[kind]


def test_the_module_without_a_mistake_passes():
    assert bptt.check_module(made(broken.OneStepAtATime), **SMALL)


@pytest.mark.parametrize("double", [True, False])
def test_an_error_of_a_percent_is_seen(double):
    class Percent(broken.OneStepAtATime):
        def gate(self, z):
            return broken.Scaled.apply(z, 0.99)

    torch.manual_seed(0)
    found = bptt.check_module(Percent(), double=double, steps=3)
    assert found["gradients of outputs"].verdict == "wrong"
    assert found.precision == ("float64" if double else "float32")


class Cut(sound.Leaky):
    """Between the second and the third step of a call the potential has no gradient."""

    def forward(self, x, state=None):
        self.count = 0
        return super().forward(x, state)

    def kept(self, v):
        self.count += 1
        return v.detach() if self.count == 3 else v


class Detached(sound.Leaky):
    def forward(self, x, state=None):
        z, (v, last) = super().forward(x, state)
        return z, (v.detach(), last)


def test_a_surrogate_gradient_is_compared_with_the_module_stepped():
    torch.manual_seed(0)
    found = bptt.check_module(Cut(), **SMALL)
    assert found["gradients of outputs"].verdict == "does not apply"
    assert [check.name for check in found.wrong] == ["two pieces", "single steps"]
    assert (found["single steps"].problem.t, found["single steps"].problem.s) == (2, 0)


def test_a_potential_without_any_gradient_is_wrong_of_a_spiking_neuron_too():
    torch.manual_seed(0)
    problem = bptt.check_module(Detached(), **SMALL)["gradients of final states"].problem
    assert (problem.of, problem.t, problem.found) == ("final state[0]", 3, 0)
