"""The loss of one step alone, a scalar or one for each sequence; and steps counted from the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bptt
from bptt.flow import gradient_flow

T, B, I, H = 12, 3, 4, 5
TARGET = torch.linspace(-1, 1, H, dtype=torch.float64)

MODULES = {
    "ours": lambda: bptt.GRU(I, H, num_layers=2),
    "dropout": lambda: bptt.LSTM(I, H, num_layers=2, dropout=0.5),
    "torch": lambda: nn.LSTM(I, H, batch_first=True),
    "foreign": lambda: bptt.Stepwise(nn.GRUCell(I, H)),
}


def inputs(module, steps=T, batch=B):
    x = torch.randn(steps, batch, I, dtype=torch.float64)
    return x.transpose(0, 1) if module.batch_first else x


def errors(y, module):
    """Of each step and sequence, [T, B]."""
    e = (y - TARGET).square().mean(-1)
    return e.t() if module.batch_first else e


def at(module, t):
    return (slice(None), t) if module.batch_first else t


def assert_same(found, expected):
    assert found.times == expected.times
    assert found.losses.shape == expected.losses.shape
    torch.testing.assert_close(found.losses, expected.losses)
    for a, b in zip(found.states, expected.states, strict=True):
        torch.testing.assert_close(a.norms, b.norms, equal_nan=True, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.attribution, expected.attribution, equal_nan=True)


@pytest.mark.parametrize("which", MODULES)
@pytest.mark.parametrize("t", [T - 1, 4])
def test_a_scalar_is_the_loss_of_its_step(which, t):
    module = MODULES[which]().double()
    x = inputs(module)
    found = gradient_flow(module, x, lambda y: (y[at(module, t)] - TARGET).square().mean())
    expected = gradient_flow(module, x, lambda y: errors(y, module).mean(1), times=[t])
    assert found.times == (t,)
    assert found.norms[0, :t].min() > 0
    assert_same(found, expected)


@pytest.mark.parametrize("which", MODULES)
@pytest.mark.parametrize("batch", [B, T, 1])
def test_a_loss_for_each_sequence_is_one_even_where_there_are_as_many_as_steps(which, batch):
    module = MODULES[which]().double()
    x = inputs(module, batch=batch)
    found = gradient_flow(
        module, x, lambda y: (y[at(module, -1)] - TARGET).square().mean(1), times=[-1]
    )
    assert_same(found, gradient_flow(module, x, lambda y: errors(y, module), times=[T - 1]))


def test_a_loss_for_each_step_stays_one_where_there_are_as_many_sequences():
    module = bptt.GRU(I, H).double()
    x = inputs(module, batch=T)
    masked = torch.zeros(T, dtype=torch.float64)
    masked[-1] = 1
    for weights in (torch.ones_like(masked), masked):
        flow = gradient_flow(module, x, lambda y, w=weights: errors(y, module).mean(1) * w)
        assert flow.times == tuple(range(T))
        expected = errors(module(x)[0], module).mean(1) * weights
        torch.testing.assert_close(flow.losses, expected[:, None].expand(T, T))


def test_it_goes_through_a_readout_and_without_a_batch():
    module, readout = nn.GRU(I, H), nn.Linear(H, 1)
    x = torch.randn(T, I)
    found = gradient_flow(module, x, lambda y: readout(y[-1]).squeeze())
    expected = gradient_flow(module, x, lambda y: readout(y)[:, 0], times=[-1])
    assert_same(found, expected)


def test_the_bias_of_a_truncation_is_measured_on_it():
    module = bptt.init.orthogonal_(bptt.RNN(I, H)).double()
    x = inputs(module)
    last = gradient_flow(module, x, lambda y: (y[-1] - TARGET).square().mean()).suggestion()
    each = gradient_flow(module, x, lambda y: errors(y, module).mean(1), times=[-1]).suggestion()
    assert last.measured is not None
    assert last == each


def test_a_meter_takes_it_too():
    module = bptt.GRU(I, H).double()
    x = inputs(module)
    last = bptt.FlowMeter(module).look(x, lambda y: (y[-1] - TARGET).square().mean())
    each = bptt.FlowMeter(module).look(x, lambda y: errors(y, module).mean(1))
    assert last == each
    zero = bptt.FlowMeter(module).look(x, lambda y: 0 * y[-1].sum())
    assert not any(zero.by_lag)


@pytest.mark.parametrize(
    ("loss_fn", "times", "said"),
    [
        (lambda y: y.sum(), None, r"one number, which .* of 12 steps, 0 to 11; return a loss for "),
        (lambda y: y.sum(), [-1], r"12 steps, 0 to 11; .*\[T, B\], here \(12,\) or \(12, 3\)"),
        (lambda y: y[-2:].sum(), None, r"2 steps, 10 to 11; .*as of outputs\[-1\]"),
        (lambda y: y.sum((0, 2)), None, r"returned \(3,\), which depends on .* of 12 steps"),
        (lambda y: y[-1].sum(), [0, 11], r"of step 11, and times=\[0, 11\] asks for others"),
        (lambda y: y[4].sum(), [-1], r"of step 4, and times=\[-1\] asks for others; leave times"),
        (lambda y: 0 * y[-1].sum(), None, "of no step"),
        (lambda y: y[-1].sum().detach(), None, "depend on no output, or loss_fn cut the graph"),
        (lambda y: float(y[-1].sum().detach()), None, "got float; do not sum or average over"),
    ],
)
def test_what_is_not_the_loss_of_one_step_is_refused(loss_fn, times, said):
    x = inputs(module := bptt.GRU(I, H).double())
    with pytest.raises(ValueError, match=said) as caught:
        gradient_flow(module, x, loss_fn, times=times)
    assert "\n" not in str(caught.value)


def test_where_the_batch_comes_first_the_step_to_take_is_spelled_so():
    module = nn.GRU(I, H, batch_first=True).double()
    with pytest.raises(ValueError, match=r"as of outputs\[:, -1\]"):
        gradient_flow(module, inputs(module), lambda y: y.sum())


def test_a_loss_that_is_zero_is_followed_where_one_step_is_asked_for():
    module = bptt.GRU(I, H).double()
    flow = gradient_flow(module, inputs(module), lambda y: 0 * y[-1].sum(), times=[-1])
    assert not flow.norms.any()


def test_steps_are_counted_from_the_end_as_python_does():
    module = bptt.GRU(I, H)
    x = torch.randn(T, B, I)
    found = gradient_flow(module, x, times=[-1, 2, -T, 11])
    assert found.times == (0, 2, 11)
    assert_same(found, gradient_flow(module, x, times=[0, 2, 11]))


@pytest.mark.parametrize("times", [[-T - 1], [T], [0, T], []])
def test_there_is_no_such_step(times):
    with pytest.raises(ValueError, match="from 0 to 11, or from the end, -12 to -1; one at least"):
        gradient_flow(bptt.GRU(I, H), torch.randn(T, B, I), times=times)
