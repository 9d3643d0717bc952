"""The suggested reach: its formula on norms made by a rule, and beside the bias really measured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flow.made import flow_of
from torch import nn
from torch.nn.functional import cross_entropy

import bptt
from bptt._src.flow.truncation import SAFETY, estimate, suggest, tail
from bptt.data import make_task


def test_a_constant_decay():
    """Σ_{k>K} β^k / Σ β^k is β^{K+1} for an endless sequence, and so is the root of squares."""
    beta = 0.6
    flow = flow_of(lambda t, k, b: beta**k, steps=60, times=(59,))
    found = tail(flow)
    expected = beta ** np.arange(1, 31)
    np.testing.assert_allclose(found.coherent[:30], expected, rtol=1e-6)
    np.testing.assert_allclose(found.incoherent[:30], expected, rtol=1e-6)
    for bias in (0.5, 0.1, 0.01):
        K = math.ceil(math.log(bias / SAFETY) / math.log(beta)) - 1
        assert estimate(flow, bias) == max(1, K)


def test_the_larger_share_counts():
    flat = flow_of(lambda t, k, b: 1.0, steps=20, times=(19,), batch=1)
    K = np.arange(20)
    np.testing.assert_allclose(tail(flat).coherent, (19 - K) / 20)
    np.testing.assert_allclose(tail(flat).incoherent, np.sqrt((19 - K) / 20))
    assert estimate(flat, 0.5) == 18  # √(1/20) = 0.22 is the first below 0.25; the mean: at 14
    peaked = flow_of(lambda t, k, b: 10.0 if k == 0 else 1.0, steps=20, times=(19,), batch=1)
    assert tail(peaked).coherent[1] > tail(peaked).incoherent[1]
    assert estimate(peaked, 0.5) == 12  # 7/29 = 0.24 and √(7/119) = 0.24


def test_sums_not_means_over_the_losses():
    """A lag that a single loss has weighs as one loss does."""
    flow = flow_of(lambda t, k, b: 1.0, steps=4, batch=1)
    np.testing.assert_allclose(tail(flow).coherent, [6 / 10, 3 / 10, 1 / 10, 0])
    np.testing.assert_allclose(tail(flow).incoherent ** 2, [6 / 10, 3 / 10, 1 / 10, 0])


def test_all_of_the_state_is_taken_together():
    both = flow_of(lambda t, k, b: 3.0, steps=3, names=("hidden", "cell"), batch=1)
    # lag 0 has the hidden state only: 3 values of 3; later 3√2.
    total = 9 + 3 * 3 * math.sqrt(2)
    np.testing.assert_allclose(tail(both).coherent[0], (total - 9) / total)


def test_what_lies_beyond_the_lags_that_were_followed():
    beta = 0.8
    few = flow_of(lambda t, k, b: beta**k, steps=80, lags=12, times=(79,))
    all_ = flow_of(lambda t, k, b: beta**k, steps=80, times=(79,))
    np.testing.assert_allclose(tail(few).coherent, tail(all_).coherent[:12], rtol=1e-6)
    np.testing.assert_allclose(tail(few).incoherent, tail(all_).incoherent[:12], rtol=1e-6)
    assert estimate(few, 0.5) == estimate(all_, 0.5)
    assert estimate(few, 0.01) is None  # further than what was followed
    flat = flow_of(lambda t, k, b: 1.0, steps=80, lags=12, times=(79,))
    assert estimate(flat, 0.5) is None  # who knows
    two = flow_of(lambda t, k, b: beta**k, steps=80, lags=2, times=(79,))
    assert estimate(two, 0.5) is None  # no decay can be fitted
    ends = flow_of(lambda t, k, b: float(k < 5), steps=80, lags=12, times=(79,))
    assert estimate(ends, 0.1) == 4


@pytest.mark.parametrize("steps", [40, 80, 300])
def test_of_an_excerpt_the_length_does_not_count(steps):
    """As of a very long sequence of the same kind, whose losses have all lags."""
    beta = 0.9
    flow = replace(flow_of(lambda t, k, b: beta**k, steps=steps, batch=1), excerpt=True)
    whole = flow_of(lambda t, k, b: beta**k, steps=600, times=(599,), batch=1)
    np.testing.assert_allclose(tail(flow).coherent, tail(whole).coherent[:steps], rtol=1e-6)
    np.testing.assert_allclose(tail(flow).incoherent, tail(whole).incoherent[:steps], rtol=1e-6)
    assert estimate(flow) == estimate(whole) == 28  # .9^29 = .047
    assert "Truncated(every=28, reach=56)" in flow.advice[-1].text


def test_losses_of_an_excerpt_may_be_of_different_size():
    flow = flow_of(lambda t, k, b: 0.8**k * (100.0 if t > 50 else 1.0), steps=60)
    flat = flow_of(lambda t, k, b: 0.8**k, steps=60)
    one, two = (tail(replace(f, excerpt=True)) for f in (flow, flat))
    np.testing.assert_allclose(one.coherent[1:], two.coherent[1:], rtol=0.02)


def test_an_excerpt_that_is_too_short_tells_nothing():
    flat = replace(flow_of(lambda t, k, b: 1.0, steps=20), excerpt=True)
    slow = replace(flow_of(lambda t, k, b: 0.99**k, steps=50), excerpt=True)
    assert estimate(flat) is estimate(slow) is None


def test_where_there_is_nothing_to_estimate():
    assert estimate(flow_of(lambda t, k, b: 0.0)) is None
    assert estimate(flow_of(lambda t, k, b: math.inf if k > 3 else 1.0)) is None
    assert estimate(flow_of(lambda t, k, b: 1.0, steps=20), 0.01) == 19  # the whole sequence
    assert estimate(flow_of(lambda t, k, b: float(k == 0))) == 1


@pytest.mark.parametrize("bias", [0.0, 1.0, -0.1, math.nan])
def test_a_bias_out_of_range(bias):
    with pytest.raises(ValueError, match=rf"between 0 and 1, got {bias}"):
        suggest(flow_of(lambda t, k, b: 0.5**k), bias)


# --------------------------------------------------------------------------- on trained models


class Model(nn.Module):
    takes_carry = True

    def __init__(self, cell, task):
        super().__init__()
        self.recurrent = getattr(bptt, cell)(task.inputs, 32)
        self.readout = nn.Linear(32, task.outputs)

    def forward(self, x, state=None, **how):
        h, state = self.recurrent(x, state, **how)
        return self.readout(h), state


def trained(cell, task, updates, prepare):
    torch.manual_seed(0)
    model = Model(cell, task)
    prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = task.batch(generator)
        optimizer.zero_grad()
        task.loss(model(batch.inputs)[0], batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, task.batch(generator)


def losses(y, targets):
    return cross_entropy(y.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@pytest.mark.parametrize(
    ("cell", "prepare"),
    [
        ("RNN", lambda m: None),
        ("GRU", bptt.init.forget_bias_),
        ("LSTM", bptt.init.forget_bias_),
    ],
)
def test_the_bias_measured_on_a_trained_model(cell, prepare):
    """No more than was asked for, and not by the whole sequence; one step less has a bias, too."""
    task = make_task("copy-stream", batch_size=16)
    model, batch = trained(cell, task, 100, prepare)
    x, targets = torch.cat([batch.inputs] * 2), torch.cat([batch.targets] * 2)
    flow = bptt.gradient_flow(
        model.recurrent,
        x,
        lambda h: losses(model.readout(h), targets),
        attribution=False,
        dynamics=False,
    )
    parameters = {f"recurrent.{k}": p for k, p in model.recurrent.named_parameters()}

    def measured(K):
        return bptt.estimator_error(
            model,
            x,
            lambda y: losses(y, targets).mean(),
            bptt.Truncated(every=K, reach=2 * K),
            parameters=parameters,
        ).total.bias

    for bias in (0.3, 0.1):
        K = flow.suggest_truncation(bias)
        assert len(x) > 2 * K
        assert measured(K) <= 1.2 * bias
    assert measured(1) > 0.1  # there is something to lose
