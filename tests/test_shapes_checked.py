"""The annotations of bptt are checked while the tests run, shapes and types both."""

import pytest
import torch
from jaxtyping import TypeCheckError

from bptt.cells import Weights, elman


def _weights():
    return Weights(ih=torch.ones(3, 2), hh=torch.ones(3, 3))


def test_fitting_shapes_pass():
    (h,) = elman.TANH.step(torch.ones(4, 2), (torch.zeros(4, 3),), _weights())
    assert h.shape == (4, 3)


def test_shapes_that_disagree_are_refused():
    # Torch itself would broadcast the state's single row over the batch of four.
    with pytest.raises(TypeCheckError, match="batch"):
        elman.TANH.step(torch.ones(4, 2), (torch.zeros(1, 3),), _weights())


def test_other_types_are_refused():
    with pytest.raises(TypeCheckError):
        elman.TANH.step(torch.ones(4, 2), (torch.zeros(4, 3),), "weights")


def test_public_modules_are_checked():
    import bptt

    with pytest.raises(TypeCheckError):
        bptt.RNN(2, 3)([[1.0, 2.0]])
