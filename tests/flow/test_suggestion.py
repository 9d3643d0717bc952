"""A suggested truncation is measured where it can be, and says so; what was not, says why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from flow.made import flow_of
from torch import nn

import bptt
from bptt._src.flow.truncation import estimate

T, B = 60, 4


class TwoUnits(nn.Module):
    """A unit that forgets within a few steps, and one that never does; both add their inputs."""

    batch_first = False

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, state=None):
        if self.training:
            self.calls += 1
        h = x.new_zeros(1, x.shape[1], 2) if state is None else state
        ys = []
        for x_t in x:
            h = x.new_tensor([0.1, 1.0]) * h + self.w * x_t
            ys.append(h)
        return torch.cat(ys), h


def cancelling(y):
    """Large losses whose gradients cancel, of the unit that forgets, and small ones that add up."""
    signs = torch.tensor([1.0, -1.0], dtype=y.dtype).repeat(T // 2).view(T, 1)
    return signs * y[..., 0] + 0.0004 * y[..., 1]


def inputs():
    return torch.ones(T, B, 1, dtype=torch.float64)


def bias_at(module, loss_fn, every, reach, x=None):
    x = inputs() if x is None else x
    credit = bptt.Truncated(every=every, reach=reach)
    return bptt.estimator_error(module, x, lambda y: loss_fn(y).sum(), credit).total.bias


def test_where_near_lags_cancel_the_estimate_is_raised_until_the_measured_bias_is_low_enough():
    module = TwoUnits()
    flow = bptt.gradient_flow(module, inputs(), cancelling)
    K = estimate(flow, 0.1)
    assert bias_at(module, cancelling, K, 2 * K) > 0.25
    found = flow.suggestion(0.1)
    assert K < found.reach == flow.suggest_truncation(0.1) < T
    assert found.measured == bias_at(module, cancelling, found.reach, 2 * found.reach) <= 0.1
    assert (found.bias, found.every, found.why) == (0.1, found.reach, None)


@pytest.mark.parametrize("every", [5, 20])
def test_with_a_fixed_window_the_reach_goes_beyond_it(every):
    module = TwoUnits()
    flow = bptt.gradient_flow(module, inputs(), cancelling)
    found = flow.suggestion(0.1, every=every)
    assert found.every == every
    assert found.measured == bias_at(module, cancelling, every, every + found.reach) <= 0.1
    assert bias_at(module, cancelling, every, every + 1) > 0.1
    advice = replace(flow, window=every).advice[-1].text
    credit = f"With windows of {every} steps, credit=bptt.Truncated(every={every}, reach="
    if every + found.reach < T:
        assert f"{credit}{every + found.reach}): measured on these sequences" in advice


@pytest.mark.parametrize("loss", ["default", "of each sequence", "of all"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_bias_measured_is_that_of_estimator_error(loss, batch_first):
    torch.manual_seed(0)
    lstm = bptt.init.forget_bias_(bptt.LSTM(3, 8, batch_first=batch_first))
    x = torch.randn(*((B, 30) if batch_first else (30, B)), 3)
    losses = {
        "default": None,
        "of each sequence": lambda y: (y.transpose(0, 1) if batch_first else y).square().sum(2),
        "of all": lambda y: (y.transpose(0, 1) if batch_first else y).square().sum((1, 2)),
    }[loss]
    flow = bptt.gradient_flow(lstm, x, losses, times=[12, 29])
    measured = flow.bias_of(4, 8)
    if losses is None:
        from bptt._src.flow.cotangents import of_random_directions

        def losses(y):
            return of_random_directions(y, steps=30, batch=B, time=int(batch_first))

    y, _ = lstm(x)
    exact = torch.autograd.grad(losses(y)[[12, 29]].sum(), [*lstm.parameters()])
    y, _ = lstm(x, credit=bptt.Truncated(every=4, reach=8))
    cut = torch.autograd.grad(losses(y)[[12, 29]].sum(), [*lstm.parameters()])
    off = sum((a - b).square().sum() for a, b in zip(exact, cut, strict=True))
    assert measured == pytest.approx(
        float((off / sum(a.square().sum() for a in exact)).sqrt()), rel=1e-4
    )
    assert measured > 1e-3


def test_nothing_is_changed_by_measuring():
    module = TwoUnits()
    flow = bptt.gradient_flow(module, inputs(), cancelling)
    calls, random = module.calls.clone(), torch.get_rng_state()
    assert flow.suggestion().measured is not None
    assert torch.equal(module.calls, calls)
    assert torch.equal(torch.get_rng_state(), random)
    assert module.w.grad is None


def test_it_is_measured_once():
    module = TwoUnits()
    counted = []
    flow = bptt.gradient_flow(module, inputs(), lambda y: counted.append(1) or cancelling(y))
    flow.suggestion()
    before = len(counted)
    assert flow.suggestion() is flow.suggestion(0.1)
    assert flow.advice
    assert flow.to_dict()["suggested_reach"]["measured"] is not None
    assert len(counted) == before


# ------------------------------------------------------------ where it is not, it says so


def test_of_a_network_that_was_trained_further_nothing_is_measured():
    module = TwoUnits()
    flow = bptt.gradient_flow(module, inputs(), cancelling)
    with torch.no_grad():
        module.w.mul_(1.5)
    found = flow.suggestion()
    assert found.measured is None
    assert found.reach == estimate(flow, 0.1)
    assert "no longer those that were followed" in found.why
    assert f"not measured ({found.why}); bptt.estimator_error measures it" in flow.advice[-1].text


def test_with_dropout_it_is_measured_only_where_the_same_units_are_dropped():
    torch.manual_seed(0)
    lstm = bptt.LSTM(3, 8, 2, dropout=0.5)
    one, other = (bptt.gradient_flow(lstm, torch.randn(30, B, 3)) for _ in range(2))
    assert other.suggestion().measured is not None
    torch.rand(7)  # now others would be
    assert one.suggestion().measured is None
    assert "drops units at random" in one.suggestion().why


def test_without_parameters_there_is_no_bias_to_measure():
    def module(x, state=None):
        h = x.new_zeros(B, 3) if state is None else state
        ys = []
        for x_t in x:
            h = torch.tanh(0.5 * h + x_t)
            ys.append(h)
        return torch.stack(ys), h

    flow = bptt.gradient_flow(module, torch.randn(30, B, 3), state_batch_dim=0)
    found = flow.suggestion()
    assert found.measured is None
    assert found.reach is not None
    assert "no parameter" in found.why


def test_a_flow_without_its_module_gives_an_estimate():
    found = flow_of(lambda t, k, b: 0.5**k, steps=40).suggestion()
    assert (found.measured, found.why) == (None, "the module is not at hand")
    assert found.reach == 4
    flat = flow_of(lambda t, k, b: 1.0, steps=80, lags=12, times=(79,)).suggestion()
    assert (flat.reach, flat.every) == (None, None)


def test_lags_beyond_those_that_were_followed_are_measured_all_the_same():
    """All of a sequence is there, though few of its lags were followed."""
    module = TwoUnits()

    def last(y):
        return y[..., 1]

    flow = bptt.gradient_flow(module, inputs(), last, lags=5)
    assert estimate(flow, 0.1) is None
    found = flow.suggestion(0.1)
    assert found.measured <= 0.1
    assert found.reach > 5


def test_of_an_excerpt_only_the_losses_count_that_have_more_lags_than_the_credit():
    module = TwoUnits()

    def forgetting(y):
        return y[..., 0]

    flow = bptt.gradient_flow(module, inputs(), forgetting, excerpt=True)
    found = flow.suggestion(0.1)
    assert found.measured == flow.bias_of(found.reach, 2 * found.reach, 2 * found.reach) > 0
    # One that goes on beyond it cannot be measured in it.
    module = TwoUnits()
    flow = bptt.gradient_flow(module, inputs(), cancelling, excerpt=True)
    found = flow.suggestion(0.1)
    assert found.reach is None
    assert found.measured is None


def test_an_excerpt_too_short_to_measure_in_says_how_long_it_had_to_be():
    rnn = bptt.init.orthogonal_(bptt.RNN(3, 16))
    torch.manual_seed(0)
    flow = bptt.gradient_flow(rnn, torch.randn(40, B, 3), excerpt=True)
    K = estimate(flow, 0.1)
    assert K is not None
    found = flow.suggestion(0.1, every=30)
    assert (found.reach, found.measured) == (K, None)
    assert found.why == f"that takes an excerpt of {60 + K} steps, and this one has 40"


@pytest.mark.parametrize("every", [0, -3])
def test_a_window_out_of_range(every):
    with pytest.raises(ValueError, match=f"every must be 1 at least, got {every}"):
        flow_of(lambda t, k, b: 0.5**k).suggest_truncation(every=every)


def test_losses_that_are_not_finite_have_no_suggestion():
    flow = bptt.gradient_flow(TwoUnits(), inputs(), lambda y: cancelling(y) * math.inf)
    assert flow.suggestion().reach is None
