"""The meter: it reads what gradient_flow reads, raises its alarms, and changes nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch

import bptt
from bptt._src.engines import norm_hooks
from bptt._src.flow.alarm import Probe, alarm_of, growth_of
from bptt._src.flow.lags import DecayFit, Horizon
from bptt.errors import CheckpointError

T, B, I, H = 40, 4, 3, 24


def x_of(steps=T, batch=B, seed=0):
    return torch.randn(steps, batch, I, generator=torch.Generator().manual_seed(seed))


def scaled(radius, nonlinearity="tanh", **options):
    """A network whose recurrent weights are orthogonal times a factor: that is its radius."""
    torch.manual_seed(0)
    rnn = bptt.RNN(I, H, nonlinearity=nonlinearity, **options)
    with torch.no_grad():
        for name, p in rnn.named_parameters():
            if name.startswith("weight_hh"):
                torch.nn.init.orthogonal_(p).mul_(radius)
            if name.startswith("weight_ih"):
                p.mul_(0.01)  # so little that the units stay where they are linear
            if name.startswith("bias"):
                p.zero_()
    return rnn


def losses(y):
    return y.square().mean(2)


def train(meter, module, updates, *, heard=True, told=True, seed=0):
    """Some updates of plain torch; give the weights and the readings."""
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    readings = []
    for n in range(updates):
        x = x_of(seed=seed + n)
        optimizer.zero_grad()
        y, _ = module(torch.nn.functional.dropout(x, 0.1))
        loss = losses(y).mean()
        if heard and meter:
            with meter.listening():
                loss.backward()
        else:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if meter:
            readings.append(meter.update(norm, *((x, losses) if told else ())))
        optimizer.step()
    return [p.detach().clone() for p in parameters], readings


MODULES = {
    "ours": lambda: bptt.LSTM(I, H, num_layers=2, dropout=0.2),
    "torch's": lambda: torch.nn.GRU(I, H),
    "an rnn": lambda: bptt.RNN(I, H),
    "of cells": lambda: bptt.Stepwise(torch.nn.GRUCell(I, H)),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_it_reads_what_gradient_flow_does_on_the_same_batch(make):
    torch.manual_seed(1)
    module, x = make(), x_of()
    meter = bptt.FlowMeter(module, every=1, lags=30)
    reading = meter.update(0.5, x, losses)
    module.eval() if isinstance(module, torch.nn.Module) else None
    flow = bptt.gradient_flow(module, x, losses, times=[T - 1], lags=30, dynamics=False)
    probe = reading.probe
    assert probe.horizon.lag == flow.horizon()
    assert 0 < probe.horizon.lag < 30
    assert probe.horizon.reached == flow.settles()
    assert probe.decay == pytest.approx(flow.decay)
    assert probe.growth == pytest.approx(max(flow.by_lag.mean[1:]) / flow.by_lag.mean[1])
    first, *others = flow.by_lag.mean
    assert probe.by_lag == pytest.approx((0.0 if math.isnan(first) else first, *others))
    assert math.isnan(first) == (not isinstance(module, torch.nn.RNNBase))
    assert (probe.update, probe.lags) == (1, 30)


def test_the_state_before_the_batch_counts():
    torch.manual_seed(1)
    module, x = bptt.LSTM(I, H), x_of(5)
    state = tuple(3 * torch.randn(1, B, H) for _ in range(2))
    meter = bptt.FlowMeter(module, every=1)
    with_state = meter.update(0.5, x, losses, state).probe
    assert with_state.decay != meter.update(0.5, x, losses).probe.decay


def test_inputs_may_have_the_batch_first():
    torch.manual_seed(1)
    one = bptt.GRU(I, H)
    torch.manual_seed(1)
    two, x = bptt.GRU(I, H, batch_first=True), x_of()
    first = bptt.FlowMeter(one, every=1).update(1.0, x, losses).probe
    second = bptt.FlowMeter(two, every=1).update(
        1.0, x.transpose(0, 1), lambda y: losses(y).transpose(0, 1)
    )
    assert second.probe.horizon == first.horizon
    assert second.probe.decay.beta == pytest.approx(first.decay.beta, rel=1e-4)


def test_it_looks_every_so_many_updates_and_when_asked():
    module = bptt.RNN(I, H)
    meter = bptt.FlowMeter(module, every=3)
    assert meter.reading is None
    due, probes = [], []
    for _ in range(7):
        due.append(meter.is_due)
        reading = meter.update(1.0, x_of(), losses)
        probes.append(reading.probe and reading.probe.update)
        assert meter.reading is reading
    assert due == [False, False, True, False, False, True, False]
    assert probes == [None, None, 3, 3, 3, 6, 6]
    assert meter.look(x_of(), losses).update == 7
    assert meter.update(1.0).probe.update == 7
    never = bptt.FlowMeter(module, every=0)
    assert [never.update(1.0, x_of(), losses).probe for _ in range(3)] == [None] * 3
    assert not never.is_due


def test_it_checks_once_that_losses_are_of_their_own_steps():
    meter, passes = bptt.FlowMeter(bptt.RNN(I, H), every=0), []
    for _ in range(2):  # what was refused is not taken for checked
        with pytest.raises(ValueError, match="depends on the outputs of other steps"):
            meter.look(x_of(), lambda y: losses(y).cumsum(0))

    def counted(y):
        y.register_hook(passes.append)
        return losses(y)

    seen = []
    for _ in range(3):
        meter.look(x_of(), counted)
        seen.append(len(passes))
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_training_goes_the_same_way_with_it(make):
    results = []
    for every in (None, 0, 1):
        torch.manual_seed(2)
        module = make()
        meter = None if every is None else bptt.FlowMeter(module, every=every)
        weights, _ = train(meter, module, 4)
        results.append([*weights, torch.get_rng_state()])
        assert all(part.training for part in module.modules())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parts_that_were_in_evaluation_mode_stay_in_it():
    module = torch.nn.Sequential(bptt.RNN(I, H), torch.nn.Dropout())
    module[1].eval()

    def run(x, state=None):
        y, state = module[0](x, state)
        return module[1](y), state

    wrapped = bptt.Stepwise(torch.nn.RNNCell(I, H))
    wrapped.train()
    list(wrapped.modules())[1].eval()
    meter = bptt.FlowMeter(wrapped, every=1)
    meter.look(x_of(5), losses)
    assert [m.training for m in wrapped.modules()] == [True, False]
    bptt.FlowMeter(run, every=1).look(x_of(5), losses)  # any callable
    assert [m.training for m in module] == [True, False]


def test_the_norm_is_that_of_the_modules_gradient_where_none_is_given():
    module = bptt.GRU(I, H)
    losses(module(x_of())[0]).mean().backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
    assert bptt.FlowMeter(module).update().norm == pytest.approx(expected)
    assert bptt.FlowMeter(module).update(torch.tensor(2.5)).norm == 2.5


# --------------------------------------------------------------------------------- alarms


def test_a_gradient_that_explodes_is_an_alarm_when_looked_at_and_when_heard():
    rnn = scaled(1.5)
    looking = bptt.FlowMeter(rnn, every=1)
    alarm = looking.update(1.0, x_of(20), losses).alarm
    assert "the gradient explodes: over 19 steps" in alarm
    assert looking.reading.probe.decay.beta == pytest.approx(1.5, rel=0.05)
    assert "alarm: the gradient explodes" in str(looking.reading)

    _, readings = train(bptt.FlowMeter(rnn, every=0), rnn, 1)
    assert "the gradient explodes: over the earlier half of the window" in readings[0].alarm
    _, readings = train(bptt.FlowMeter(rnn, every=0), rnn, 1, heard=False)
    assert readings[0].growth is None


def test_it_listens_to_every_tenth_update(monkeypatch):
    meter, rnn = bptt.FlowMeter(bptt.RNN(I, H), every=0), bptt.RNN(I, H)
    heard = iter(range(100))
    monkeypatch.setattr("bptt._src.flow.meter.growth_of", lambda _: next(heard))
    seen = []
    for _ in range(23):
        with meter.listening():
            losses(rnn(x_of(6))[0]).mean().backward()
        seen.append(meter.update(1.0).growth)
    assert seen == [0] * 10 + [1] * 10 + [2] * 3


def test_a_gradient_that_dies_is_an_alarm():
    meter = bptt.FlowMeter(scaled(0.1), every=2)
    *before, last = (meter.update(1.0, x_of(), losses) for _ in range(6))
    assert [r.alarm for r in before] == [None] * 5  # two looks
    assert "the gradient dies: 99 % of it is within 1 step, so" in last.alarm
    assert last.probe.decay.beta == pytest.approx(0.1, rel=0.05)
    sigmoid = bptt.RNN(I, H, nonlinearity="sigmoid")  # φ' is 1/4 at most
    dead = scaled(1.0, "relu")
    with torch.no_grad():
        dead.bias_ih_l0.fill_(-5)
    for module in (sigmoid, dead):
        meter = bptt.FlowMeter(module, every=1)
        assert "dies" in [meter.update(1.0, x_of(), losses).alarm for _ in range(3)][-1]


def test_a_look_at_which_it_lives_begins_anew():
    dying, living = scaled(0.1), scaled(1.0)
    meter, seen = bptt.FlowMeter(dying, every=1), []
    for module in (dying, dying, living, dying, dying, dying):
        meter.module = module
        seen.append(meter.update(1.0, x_of(), losses).alarm is not None)
    assert seen == [False] * 5 + [True]


@pytest.mark.parametrize("radius", [0.7, 1.0, 1.02])
def test_a_healthy_gradient_is_none(radius):
    _, readings = train(bptt.FlowMeter(scaled(radius), every=1), scaled(radius), 3)
    assert [r.alarm for r in readings] == [None] * 3
    assert 0.5 < readings[0].growth < 10


@pytest.mark.parametrize("kind", [bptt.RNN, bptt.GRU, bptt.LSTM])
def test_networks_as_they_are_initialised_raise_none(kind):
    torch.manual_seed(3)
    module = kind(I, 64)
    _, readings = train(bptt.FlowMeter(module, every=1), module, 3)
    assert [r.alarm for r in readings] == [None] * 3


def test_the_norm_is_compared_with_what_it_was():
    meter = bptt.FlowMeter(bptt.RNN(I, H), every=0)
    assert [meter.update(n).alarm for n in (1.0, 500.0, 1e-6, *[1.0] * 9)] == [None] * 12
    assert "jumps: its norm is 101, 101 times the median of the last 12" in meter.update(101).alarm
    assert meter.update(99.0).alarm is None
    assert "dies away: its norm is 0.0099" in meter.update(0.0099).alarm
    assert meter.update(0.011).alarm is None
    assert "not finite: its norm is nan" in meter.update(math.nan).alarm
    assert "not finite: its norm is inf" in meter.update(math.inf).alarm
    assert meter.update(1.0).alarm is None
    assert all(map(math.isfinite, meter.state_dict()["norms"]))


def test_states_gradients_that_are_not_finite():
    rnn = scaled(30.0, "relu")
    reading = bptt.FlowMeter(rnn, every=1).update(1.0, x_of(200), losses)
    assert reading.probe.horizon.lag is None
    assert reading.probe.growth == math.inf
    assert "explodes" in reading.alarm
    assert "no horizon" in str(reading)


def test_no_gradient_at_all_dies():
    probe = Probe(1, Horizon(0.01, None, False), None, 0.0, (0.0,) * 10)
    assert "none of it goes back a single step" in alarm_of(1.0, [], None, probe, 3)
    assert alarm_of(1.0, [], None, probe, 2) is None


def test_too_few_lags_say_nothing():
    rnn = scaled(0.1)
    for steps in (3, 1):
        meter = bptt.FlowMeter(rnn, every=1)
        assert [meter.update(1.0, x_of(steps), losses).alarm for _ in range(4)] == [None] * 4


def report(module, *norms):
    rows = torch.tensor(norms, dtype=torch.float64).unsqueeze(1)
    return norm_hooks.Report(module.weight_hh_l0, norm_hooks.Steps((1,) * len(norms)), rows)


def test_growth_is_that_of_the_earlier_half_in_the_layer_where_it_is_most():
    one, two = bptt.RNN(I, H), bptt.RNN(I, H)
    assert growth_of([]) is None
    early, late = (99, 99, 99, 8, 4, 2, 1, 1), (1, 1, 1, 1, 1, 1, 1, 0)
    assert growth_of([report(one, *early, *late[1:])]) is None  # fewer than 16 steps
    assert growth_of([report(one, *early, *late)]) == 8  # not by the first three
    calm = report(two, *[2] * 8, *late)
    assert growth_of([report(one, *early, *late), calm]) == 8
    # Pieces of a layer come the last one first.
    assert growth_of([report(one, *late), report(one, *early)]) == 8
    assert growth_of([report(one, math.inf, *early[1:], *late)]) == math.inf
    assert growth_of([report(one, *[0] * 16)]) is None


def test_growth_is_heard_in_pieces_and_through_windows_too():
    """What keeps less memory reports piece by piece; the growth is the same."""
    rnn, x = scaled(1.2, dtype=torch.float64), x_of().double()
    found = []
    for how in ({}, {"memory": bptt.Store(segment=7)}, {"memory": bptt.Recompute(3)}):
        meter = bptt.FlowMeter(rnn, every=0)
        with meter.listening():
            losses(bptt.unroll(rnn, x, **how)[0]).mean().backward()
        found.append(meter.update(1.0).growth)
    assert found[0] > 10
    assert found == pytest.approx([found[0]] * 3)


# ---------------------------------------------------------------------- saved and refused


def test_it_goes_on_as_if_it_had_not_stopped():
    module = bptt.RNN(I, H)
    meter = bptt.FlowMeter(module, every=4)
    _, _ = train(meter, module, 13)
    state = json.loads(json.dumps(meter.state_dict()))
    again = bptt.FlowMeter(module, every=4)
    again.load_state_dict(state)
    assert again.state_dict() == meter.state_dict()
    for norm in (1e9, 1.0, 1.0, 1e-9):
        assert again.update(norm, x_of(), losses) == meter.update(norm, x_of(), losses)
    fresh = bptt.FlowMeter(module)
    fresh.load_state_dict(json.loads(json.dumps(bptt.FlowMeter(module).state_dict())))
    assert fresh.update(1.0).probe is None


def test_looks_at_which_it_died_are_remembered():
    meter = bptt.FlowMeter(scaled(0.1), every=1)
    for _ in range(2):
        meter.update(1.0, x_of(), losses)
    again = bptt.FlowMeter(scaled(0.1), every=1)
    again.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert "dies" in again.update(1.0, x_of(), losses).alarm


@pytest.mark.parametrize("damage", [{"updates": None}, {"norms": 3}, {"probe": {"update": 1}}])
def test_a_damaged_state_is_named(damage):
    meter = bptt.FlowMeter(bptt.RNN(I, H))
    with pytest.raises(CheckpointError, match="FlowMeter is damaged"):
        meter.load_state_dict({**meter.state_dict(), **damage})
    with pytest.raises(CheckpointError, match="FlowMeter is damaged"):
        meter.load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1}, "every must be an integer from 0 on, got -1"),
        ({"lags": 1}, "lags must be an integer from 2 on, got 1"),
        ({"threshold": 0.0}, "threshold must be between 0 and 1"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bptt.FlowMeter(bptt.RNN(I, H), **options)


def test_options_change_what_is_read():
    module = scaled(0.9)
    one, two, three = (
        bptt.FlowMeter(module, every=1, **options).update(1.0, x_of(), losses).probe
        for options in ({}, {"lags": 10}, {"threshold": 0.1})
    )
    assert two.lags == 10
    assert three.horizon.lag < one.horizon.lag
    assert three.horizon.threshold == 0.1


def test_a_probe_in_words():
    decay = DecayFit(0.912345, 0.01, 1, 9)
    assert (
        str(Probe(1, Horizon(0.01, 12, True), decay, 0.1, (1.0,)))
        == "horizon 12, decay 0.912 a step"
    )
    assert str(Probe(1, Horizon(0.01, 12, False), None, 0.1, (1.0,))) == "horizon ≥ 12"


# ------------------------------------------------------------------------ lags that there are


def test_where_the_last_steps_have_no_loss_lags_count_from_the_last_that_has():
    torch.manual_seed(1)
    module, x = bptt.LSTM(I, H), x_of()

    def early(y):
        found = losses(y)
        return found * (torch.arange(T) <= 20).unsqueeze(1)

    probe = bptt.FlowMeter(module, every=1, lags=15).look(x, early)
    flow = bptt.gradient_flow(module, x, early, times=[20], lags=15)
    assert probe.by_lag == pytest.approx(flow.by_lag.mean, rel=1e-5)
    assert probe.horizon.lag == flow.horizon()


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_loss_has_no_lags_before_its_sequence_begins(batch_first):
    """The mean at a lag is over the sequences that have it, as if each were looked at alone."""
    torch.manual_seed(1)
    module, x = bptt.LSTM(I, H, batch_first=batch_first), x_of()
    resets = torch.zeros(T, B, dtype=torch.bool)
    begins = [30, 37, 0, 39]
    for b, t in enumerate(begins):
        resets[t, b] = True
    resets[12, 0] = True  # an earlier episode, which is not its own

    def own(y):
        return losses(y.transpose(0, 1) if batch_first else y)

    turned = (lambda v: v.transpose(0, 1)) if batch_first else (lambda v: v)
    meter = bptt.FlowMeter(module, every=1, lags=20)
    probe = meter.look(turned(x), own, resets=turned(resets))
    norms = torch.full((B, 20), torch.nan)
    for b, t in enumerate(begins):
        alone = x[t:, b : b + 1]
        flow = bptt.gradient_flow(module, turned(alone), own, times=[T - t - 1], lags=20)
        norms[b, : flow.lags] = flow.of_each()[0, 0].flip(0)[: flow.lags]
    assert probe.by_lag == pytest.approx(norms.nanmean(0), rel=1e-4)
    short = meter.look(turned(x[:, :2]), own, resets=turned(resets[:, :2]))
    assert short.lags == 10  # the longer one begins ten steps before the end


def test_where_the_last_steps_have_no_loss_the_last_that_has_is_looked_at():
    """Padding is masked: nothing of it goes back, and that is no gradient that dies."""
    rnn, x = bptt.GRU(2, 4), torch.randn(20, 3, 2)
    mask = (torch.arange(20) < 13).float().unsqueeze(1)
    meter = bptt.FlowMeter(rnn)
    found = meter.look(x, lambda y: y.square().sum(2) * mask)
    expected = bptt.FlowMeter(rnn).look(x[:13], lambda y: y.square().sum(2))
    assert found.horizon == expected.horizon
    assert found.by_lag == pytest.approx(expected.by_lag, rel=1e-4)
    assert bptt.FlowMeter(rnn).look(x, lambda y: 0 * y.sum(2)).horizon.lag is None
