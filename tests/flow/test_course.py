"""Alarms are about what goes wrong: silent in runs that learn, loud in runs that break."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bptt
from bptt._src.flow.alarm import alarm_of
from bptt._src.flow.course import AVERAGED, PATIENCE, Course


def course_of(losses) -> Course:
    course = Course()
    for loss in losses:
        course.add(loss)
    return course


def test_a_loss_that_falls_and_fluctuates_is_no_trouble():
    rng = random.Random(0)
    course = Course()
    for n in range(2000):
        course.add(3 * math.exp(-n / 300) + 0.2 + rng.gauss(0, 0.1))
        assert course.trouble() is None, n


def test_one_that_stands_low_for_long_is_no_trouble_either():
    rng = random.Random(0)
    course = course_of([3.0] * 20)
    for n in range(5000):
        course.add(abs(rng.gauss(0.001, 0.0005)))
        assert n < 20 or course.trouble() is None, n


def test_one_that_rises_is_from_a_tenth_of_what_was_learnt():
    learnt = [3.0] * AVERAGED + [1.0] * 50
    assert course_of([*learnt, *[1.19] * AVERAGED]).trouble() is None
    found = course_of([*learnt, *[1.21] * AVERAGED]).trouble()
    assert found == "the loss has risen from 1 to 1.21"
    # It is over when it has fallen again.
    assert course_of([*learnt, *[1.5] * 40, *[1.0] * AVERAGED]).trouble() is None


def test_a_rise_that_may_be_chance_is_none():
    rng = random.Random(1)
    course = course_of([1.0 + rng.gauss(0, 0.3) for _ in range(PATIENCE - 1)])
    assert course.trouble() is None


def test_one_that_does_not_fall_is_trouble_after_a_hundred_updates():
    assert course_of([2.0] * (PATIENCE - 1)).trouble() is None
    assert course_of([2.0] * PATIENCE).trouble() == "the loss has not fallen in 100 updates"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_one_that_is_not_finite_is_trouble_at_once(loss):
    assert course_of([loss]).trouble() == f"the loss is {loss:g}"
    assert course_of([2.0] * 30 + [loss]).trouble() == f"the loss is {loss:g}"


def test_early_on_only_a_loss_that_doubles_is_trouble():
    assert course_of([2.0, 3.9]).trouble() is None
    assert course_of([2.0, 4.1]).trouble() == "the loss has risen from 2 to 4.1"
    assert course_of([-2.0, 4.1]).trouble() is None


def test_what_it_remembers_comes_back():
    one, other = course_of([3.0] * 25 + [1.0] * 30), Course()
    other.load_state_dict(one.state_dict())
    for course in (one, other):
        for _ in range(AVERAGED):
            course.add(1.4)
    assert one.trouble() == other.trouble() == "the loss has risen from 1 to 1.4"


def test_a_strange_gradient_is_an_alarm_where_the_loss_suffers_or_is_unknown():
    good, bad = course_of([3.0 - n / 100 for n in range(200)]), course_of([3.0] * 200)
    before = [1.0] * 20
    grows, jumps, dies = (1.0, 20.0), (200.0, None), (0.001, None)
    for (norm, growth), word in ((grows, "explodes"), (jumps, "jumps"), (dies, "dies away")):
        found = alarm_of(norm, before, growth, None, 0)
        assert f"the gradient {word}" in found
        loud = alarm_of(norm, before, growth, None, 0, bad)
        assert loud == f"{found}; the loss has not fallen in 200 updates"
        silent = alarm_of(norm, before, growth, None, 0, good)
        assert silent == (found if word == "jumps" else None)
        assert alarm_of(norm, before, growth, None, 0, good, clipped=True) is None
    assert "not finite" in alarm_of(math.nan, before, None, None, 0, good, clipped=True)


# ------------------------------------------------------------------------------- in training


def recall(generator, steps, batch=32):
    """The first symbol of four is asked at the end, blanks between: it has to be kept."""
    symbols = torch.randint(4, (batch,), generator=generator)
    x = torch.zeros(steps, batch, 5)
    x[0, torch.arange(batch), symbols] = 1
    x[1:, :, 4] = 1
    return x, symbols


def run(rate, clip, updates, radius, steps):
    """Train a tanh network whose recurrent weights make the gradient grow; return its alarms."""
    torch.manual_seed(0)
    rnn, readout = bptt.RNN(5, 32), nn.Linear(32, 4)
    with torch.no_grad():
        nn.init.orthogonal_(rnn.weight_hh_l0).mul_(radius)
        rnn.weight_ih_l0.mul_(0.1)
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()
    parameters = [*rnn.parameters(), *readout.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    meter = bptt.FlowMeter(rnn, every=5, clipped=clip is not None)
    unaware = bptt.FlowMeter(rnn, every=5)
    generator = torch.Generator().manual_seed(0)
    found, quiet, loss = [], [], torch.zeros(())
    for _ in range(updates):
        x, symbols = recall(generator, steps)

        def losses(y, symbols=symbols):
            last = cross_entropy(readout(y[-1]), symbols, reduction="none")
            return torch.cat([last.new_zeros(len(y) - 1, len(symbols)), last.unsqueeze(0)])

        optimizer.zero_grad()
        loss = losses(rnn(x)[0]).sum(0).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip or 1e9)
        found.append(meter.update(norm, x, losses, loss=loss.detach()).alarm)
        quiet.append(unaware.update(norm, x, losses).alarm)
        optimizer.step()
    return [a for a in found if a], [a for a in quiet if a], float(loss.detach())


def test_silent_in_a_run_that_learns_though_its_gradient_grows_on_its_way_back():
    alarms, unaware, loss = run(rate=0.1, clip=1.0, updates=300, radius=1.2, steps=30)
    assert loss < 0.1
    assert any("the gradient explodes" in a for a in unaware)  # there is something to be silent of
    assert alarms == []


def test_loud_in_a_run_that_breaks():
    alarms, _, loss = run(rate=3.0, clip=1.0, updates=60, radius=1.6, steps=12)
    assert not loss < 2  # the logarithm of 4 is 1.39
    assert any("the gradient explodes" in a and "; the loss has risen" in a for a in alarms)
