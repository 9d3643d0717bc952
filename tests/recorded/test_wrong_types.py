"""What is said of arguments of a wrong type, where no check of annotations speaks first."""

from __future__ import annotations

import numpy as np
import pytest

import bptt


def test_a_function_a_cell_and_a_tensor_are_asked_for_by_name():
    with pytest.raises(TypeError, match=r"phi must be a function, such as torch.relu, got 'relu'"):
        bptt.cells.make_rate(0.2, "relu")
    with pytest.raises(TypeError, match=r"must be a bptt.Cell, as bptt.cells.MGU, got 'RATE'"):
        bptt.Recurrent("RATE", 3, 4)
    with pytest.raises(TypeError, match=r"bptt.LSTM: expected a tensor as input, got ndarray"):
        bptt.LSTM(3, 4)(np.zeros((5, 2, 3)))
