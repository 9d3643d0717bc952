"""What is wrapped, or built on a network, is measured as what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bptt
from bptt import gradient_flow

pytestmark = pytest.mark.usefixtures("compiled_as_written")

T, B = 12, 12  # as many of the one as of the other, so that shapes do not tell them apart


class BatchFirst(nn.Module):
    batch_first = True
    state_batch_dim = 0

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)

    def forward(self, x, state=None):
        y, h = self.rnn(x, None if state is None else state.transpose(0, 1))
        return y, h.transpose(0, 1)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def squares(y):
    return y.square().mean()


MEASUREMENTS = {
    "gradient_flow": lambda m, x, r: gradient_flow(m, x, dynamics=True, resets=r).norms,
    "dynamics": lambda m, x, r: gradient_flow(m, x, dynamics=True, resets=r).dynamics[0].lyapunov,
    "FlowMeter": lambda m, x, r: torch.tensor(bptt.FlowMeter(m).look(x, resets=r).by_lag),
    "vanishing_penalty": lambda m, x, r: bptt.vanishing_penalty(m, x, squares, resets=r),
    "lyapunov_exponents": lambda m, x, r: bptt.lyapunov_exponents(m, x, resets=r).exponents,
}

WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled and distributed": lambda m: torch.compile(
        nn.parallel.DistributedDataParallel(m), backend="eager"
    ),
}


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", [BatchFirst, lambda: nn.LSTM(2, 4, batch_first=True)])
def test_wrappers_are_looked_through(one_process, kind, wrapper, measurement):
    module, x = kind(), torch.randn(B, T, 2)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[3, 8] = True
    wrapped = WRAPPERS[wrapper](module)
    inside = wrapped.module if wrapper == "averaged" else module  # which is a copy
    found, expected = (MEASUREMENTS[measurement](m, x, resets) for m in (wrapped, inside))
    other = MEASUREMENTS[measurement](inside, x, resets.t())
    assert not torch.allclose(expected, other, equal_nan=True)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


class Residual(nn.RNN):
    """A subclass that computes something of its own."""

    def forward(self, x, hx=None):
        h = x.new_zeros(1, x.shape[1], self.hidden_size) if hx is None else hx
        outputs = []
        for x_t in x:
            y, new = super().forward(x_t.unsqueeze(0), h)
            h = 0.5 * new + h
            outputs.append(y)
        return torch.cat(outputs), h


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_its_base(measurement):
    torch.manual_seed(0)
    module, x = Residual(2, 4), torch.randn(T, B, 2)

    def same(x, state=None):
        return module(x, state)

    found, expected = (MEASUREMENTS[measurement](m, x, None) for m in (module, same))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_a_compiled_cell_is_measured_as_the_cell(measurement):
    cell, x = nn.LSTMCell(2, 4), torch.randn(T, B, 2)
    modules = bptt.Stepwise(torch.compile(cell, backend="eager")), bptt.Stepwise(cell)
    found, expected = (MEASUREMENTS[measurement](m, x, None) for m in modules)
    torch.testing.assert_close(found, expected, equal_nan=True)
    names = [[s.name for s in gradient_flow(m, x).states] for m in modules]
    assert names == [["hidden", "cell"]] * 2
