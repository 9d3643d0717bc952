"""Sight in training: the horizon is gradient_flow's, the warnings fit, and no bit changes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

import bptt
from bptt._src.flow.lags import find_horizon
from bptt._src.language_model import monitor as monitor_module
from bptt._src.language_model.flow import flow_of
from bptt._src.language_model.monitor import LAGS, Reach, reach_of
from bptt._src.language_model.probe import draw_losses, places
from bptt._src.networks import NAMES
from bptt.data import Tokens
from bptt.errors import CheckpointError, ConfigError, DivergedError
from bptt.flow import ByLag
from bptt.language_model import resume, start, train


def weights(run, name="checkpoint.safetensors"):
    return safetensors.torch.load_file(run.path / name)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(training, updates):
    return lambda: "stop" if training.progress.updates == updates else None


def having(run, name):
    return [m for m in run.metrics() if name in m]


# ---------------------------------------------------------------- the reach of a credit


def test_the_reach_of_what_is_cut_where_a_window_begins():
    reach = reach_of(bptt.Full(), 5, 0, sequences=False)
    assert reach.kept.tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert (reach.most, reach.is_whole) == (4, False)
    assert reach.mean == pytest.approx(2)


def test_the_reach_of_losses_that_reach_before_their_window():
    credit = bptt.Truncated(every=2, reach=5)
    reach = reach_of(credit, 2, credit.history, sequences=False)
    assert reach.kept.tolist() == [1, 1, 1, 1, 0.5]  # the first loss of a block 3 steps, then 4
    assert (reach.most, reach.mean) == (4, 3.5)


def test_the_reach_within_whole_sequences():
    whole = reach_of(bptt.Full(), 6, 0, sequences=True)
    assert whole.kept.tolist() == [1] * 6
    assert whole.is_whole
    cut = reach_of(bptt.Truncated(2), 4, 0, sequences=True)
    assert cut.kept.tolist() == pytest.approx([1, 2 / 3, 0, 0])
    assert not cut.is_whole


def test_what_is_drawn_counts_as_what_it_is_in_expectation_and_draws_nothing_of_trainings():
    before = torch.get_rng_state()
    reach = reach_of(bptt.Randomized(10), 12, 0, sequences=False)
    assert torch.equal(before, torch.get_rng_state())
    assert reach.kept == pytest.approx(1 - np.arange(12) / 12)


def test_a_credit_of_ones_own_is_asked_and_left_as_it_is():
    class Fading(bptt.Credit):
        asked = 0

        def plan(self, steps, batch=1, generator=None):
            self.asked += 1
            torch.rand(1)
            return bptt.Plan(steps, carry=np.full(steps, 0.5))

    credit, before = Fading(), torch.get_rng_state()
    reach = reach_of(credit, 4, 0, sequences=True)
    assert reach.kept.tolist() == [1, 0.5, 0.25, 0.125]
    assert not reach.is_whole
    assert credit.asked == 0
    assert torch.equal(before, torch.get_rng_state())


def test_what_lies_beyond_is_a_share_of_the_norms():
    reach = Reach(np.array([1, 0.5]), False)
    assert reach.beyond(np.array([2.0, 1.0, 1.0])) == pytest.approx(1.5 / 4)
    assert reach.beyond(np.array([2.0])) == 0


# ------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"layers": 2, "dropout": 0.3}, 12),
        ({"cell": "rnn", "credit": "truncated:every=4,reach=8", "steps": None}, 12),
        ({"reading": "sentences", "cell": "gru", "memory": "recompute:2", "batch_size": 11}, 19),
        ({"batch_size": 30}, 24),
    ],
    ids=str,
)
def test_the_horizon_is_that_of_gradient_flow_on_the_same_text(small, tmp_path, options, count):
    training = start(small.changed(flow_every=6, seed=3, **options), tmp_path / "run")
    training.fit(stop_after(training, 6))
    (line,) = having(training.run, "horizon")
    assert line["update"] == 6

    model, tokens = training.model.eval(), training.text.train
    drawn = draw_losses(tokens, [3, 6], LAGS, count)
    found = [flow_of_one(model, drawn, b) for b in range(count)]
    lags = max(len(norms) for norms in found)
    rows = np.stack([np.pad(n, (0, lags - len(n)), constant_values=np.nan) for n in found])
    mean = np.nanmean(rows, 0)
    expected = find_horizon(ByLag(np.arange(lags), mean, mean, mean, np.arange(lags)), None)
    assert line["horizon_lags"] == lags
    assert line["horizon"] == expected.lag
    reach = training._reach(len(drawn.inputs))
    assert line["beyond_credit"] == pytest.approx(reach.beyond(mean), abs=1e-4)


def flow_of_one(model, drawn, b):
    """The norms by lag of a loss that was drawn, alone and without padding: [lags]."""
    begin = 0 if drawn.resets is None else int(np.flatnonzero(drawn.resets[:, b])[-1])
    ids = torch.from_numpy(drawn.inputs[begin:, b : b + 1])
    target = torch.from_numpy(drawn.targets[b : b + 1])

    def losses(h):
        last = cross_entropy(model.readout(h[-1]), target, reduction="none")
        return torch.cat([last.new_zeros(len(h) - 1, 1), last.unsqueeze(0)])

    x = model.embedding(ids).detach()
    flow = bptt.gradient_flow(
        model.recurrent, x, losses, times=[len(x) - 1], lags=LAGS, attribution=False
    )
    return flow.by_lag.mean


def test_any_loss_of_a_text_is_drawn_as_often_as_any_other():
    """Each with its own tokens before it, and the beginning of its own sequence."""
    sequences = [[0, 1, 2], [0, 3, 4, 5, 6], [7], [0, 8]]
    tokens = Tokens(
        np.concatenate(sequences).astype(np.uint16), np.cumsum([0, *map(len, sequences)]), 0, 0, 0
    )
    drawn = draw_losses(tokens, [1, 2], 100, 7000)
    counted = Counter()
    for b in range(7000):
        begin = int(np.flatnonzero(drawn.resets[:, b])[-1])
        counted[(*drawn.inputs[begin:, b].tolist(), int(drawn.targets[b]))] += 1
    whole = [s[:n] for s in sequences for n in range(2, len(s) + 1)]
    assert sorted(counted) == sorted(map(tuple, whole))
    assert all(900 < n < 1100 for n in counted.values())


def test_bptt_flow_and_bptt_train_speak_of_one_horizon(small, tmp_path, monkeypatch):
    """All losses of a sequence, or as many drawn of it: the same means by lag."""
    (tmp_path / "lines.txt").write_text("abcdefg hijklmn abcdefg.\n" * 12)
    config = small.changed(
        corpus=(str(tmp_path / "lines.txt"),), reading="lines", level="char", epochs=20
    )
    training = start(config.changed(flow_every=1000), tmp_path / "run")
    training.fit()
    flow = flow_of(training.model, training.text.train, tokens=None)
    monkeypatch.setattr(monitor_module, "SEQUENCES", 2000)
    training.monitor.config = config.changed(batch_size=2000)
    training.monitor._look(1, training._reach)
    probe = training.monitor.meter._probe
    assert probe.lags == flow.lags
    assert probe.by_lag == pytest.approx(flow.by_lag.mean, rel=0.1)
    assert abs(probe.horizon.lag - flow.horizon()) <= 1
    assert probe.horizon.reached == flow.settles()


def test_stretches_are_drawn_anew_each_time_and_the_same_each_time_that_they_are(small, tmp_path):
    tokens = start(small, tmp_path / "run").text.train
    one, again, other = (places(tokens, [0, n], 20, 5) for n in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == (41, 5)


def test_how_often_it_looks(small, tmp_path):
    every = train(small.changed(flow_every=9), tmp_path / "every")
    per_epoch = every.metrics()[-1]["update"] // 2
    seen = [m["update"] for m in having(every, "horizon")]
    assert seen == list(range(9, 2 * per_epoch + 1, 9))
    # Where an epoch has fewer updates, at its end.
    seldom = train(small.changed(flow_every=10**6), tmp_path / "seldom")
    assert [m["update"] for m in having(seldom, "epoch_loss") if "horizon" in m] == [
        per_epoch,
        2 * per_epoch,
    ]
    never = train(small.changed(flow_every=0), tmp_path / "never")
    assert not having(never, "horizon")
    with pytest.raises(ConfigError, match="flow_every must be at least 0, got -1"):
        small.changed(flow_every=-1)


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"batch_size": 20, "steps": 35}, 100),
        ({"batch_size": 1, "steps": 20}, 500),
        ({"batch_size": 1, "steps": None, "credit": "truncated:every=2,reach=5"}, 2000),  # 3 again
        ({"batch_size": 2, "reading": "sentences"}, None),
        ({"batch_size": 1, "steps": 20, "flow_every": 3}, 3),
        ({"batch_size": 1, "steps": 20, "flow_every": 0}, 0),
    ],
    ids=str,
)
def test_by_default_it_looks_after_10_000_tokens_at_the_earliest(small, tmp_path, options, every):
    training = start(small.changed(**{"flow_every": None, **options}), tmp_path / "run")
    if every is None:
        offsets = training.text.train.offsets
        every = max(100, math.ceil(10_000 / (2 * np.diff(offsets).mean())))
        assert every > 100
    assert training.monitor.meter.every == every


# --------------------------------------------------------------------- it changes nothing

VARIANTS = [
    {"dropout": 0.3, "layers": 2},
    {"credit": "randomized:5"},
    {"credit": "adaptive:0.5,start=4,most=9", "steps": None, "cell": "gru"},
    {"reading": "sentences", "credit": "truncated:3", "cell": "rnn"},
    {"sampling": "random", "memory": "recompute:3", "dropout": 0.3},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_training_comes_to_the_same_bits_with_it_and_without(small, tmp_path, story, options):
    (tmp_path / "book.txt").write_text(story(120))
    config = small.changed(**options)
    runs = [train(config.changed(flow_every=n), tmp_path / str(n)) for n in (0, 2)]
    assert having(runs[1], "horizon")
    assert same(*map(weights, runs))


@pytest.mark.parametrize("options", VARIANTS[2:4], ids=str)
def test_stopped_and_resumed_it_measures_the_same(small, tmp_path, options):
    config = small.changed(flow_every=7, **options)
    whole = train(config, tmp_path / "whole")
    parts = start(config, tmp_path / "parts")
    for stop_at in (3, 7, 16):
        parts.fit(stop_after(parts, stop_at))
        parts.close()
        parts = resume(parts.run.path)
    parts.fit()
    assert same(weights(whole), weights(parts.run))
    assert [{**m, "seconds": 0} for m in whole.metrics()] == [
        {**m, "seconds": 0} for m in parts.run.metrics()
    ]
    assert len(having(whole, "horizon")) > 3


@pytest.mark.parametrize(
    "damage",
    [{"alarms": None}, {"alarms": {"a": {}}}, {"in_a_row": {}}, {"meter": {}}, {"in_a_row": 3}],
    ids=str,
)
def test_a_damaged_state_is_named(small, tmp_path, damage):
    training = start(small, tmp_path / "run")
    state = training.monitor.state_dict()
    training.monitor.load_state_dict(state)
    with pytest.raises(CheckpointError, match="damaged"):
        training.monitor.load_state_dict({**state, **damage})


# -------------------------------------------------------------------- warnings and alarms


@pytest.mark.parametrize(
    ("options", "says", "remedy"),
    [
        (
            {"credit": "truncated:2", "steps": None},
            "at most 1 steps back (0 on average",
            r"credit='truncated:every=2,reach=(\d+)' credits each loss (\d+) steps back or more",
        ),
        (
            {"credit": "truncated:2", "reading": "lines"},
            "at most 1 steps back",
            "credit='full' credits each loss to its sequence's beginning",
        ),
        (
            {"steps": 2, "sampling": "random"},
            "at most 1 steps back",
            r"with steps=\d+, three in four losses reach \d+ steps back or more",
        ),
    ],
    ids=["stream", "lines", "random windows"],
)
def test_a_credit_that_is_too_short_is_remarked_on(small, tmp_path, options, says, remedy):
    training = start(small.changed(flow_every=2, **options), tmp_path / "run")
    training.fit(stop_after(training, 5))
    assert training.monitor.remark is None
    training.fit(stop_after(training, 14))
    lines = having(training.run, "remark")
    assert lines[0]["update"] == 6  # the third look
    line, remark = lines[-1], training.monitor.remark
    assert line["remark"] == remark
    assert says in remark
    found = re.search(remedy, remark)
    assert found, remark
    if found.groups():
        assert int(found[1]) == 2 + int(found[2]) == 2 + line["horizon"]
    assert line["beyond_credit"] > 0.2
    assert f"{100 * line['beyond_credit']:.2g} % of the gradient lies beyond" in remark


def test_a_credit_that_loses_less_than_a_fifth_is_not_remarked_on(small, tmp_path):
    training = start(small.changed(flow_every=2), tmp_path / "run")
    training.fit(stop_after(training, 2))
    probe = training.monitor.meter._probe
    by_lag = np.array(probe.by_lag)
    enough = Reach(np.ones(LAGS), False)
    for share, expected in ((0.19, 0), (0.21, 1)):
        short = Reach(np.full(LAGS, 1 - share), False)
        assert short.beyond(by_lag) == pytest.approx(share)
        training.monitor._compare(probe, enough)
        training.monitor._compare(probe, short)
        assert training.monitor.in_a_row["short"] == expected
    training.monitor._compare(probe, short)
    assert training.monitor._compare(probe, short)["remark"] == training.monitor.remark is not None
    assert "remark" not in training.monitor._compare(probe, enough)
    assert training.monitor.in_a_row["short"] == 0
    assert training.monitor.remark is None


def test_a_credit_that_suits_is_not_remarked_on(small, tmp_path):
    ways = ({"steps": 40}, {"reading": "lines"}, {"reading": "sentences"})
    for number, options in enumerate(ways):
        config = small.changed(flow_every=1, learning_rate=1e-5, **options)
        assert not having(train(config, tmp_path / str(number)), "remark")


def test_a_credit_that_is_far_too_long_is_remarked_on(small, tmp_path):
    """An untrained tanh's gradient is gone within ten steps, and there are 99 to go back."""
    config = small.changed(flow_every=1, cell="rnn", steps=100, learning_rate=1e-5, epochs=4)
    run = train(config, tmp_path / "run")
    line = having(run, "remark")[0]
    assert line["update"] == 10
    lag = line["horizon"]
    assert lag * 10 < 99
    assert "up to 99 steps back" in line["remark"]
    assert f"lies within {lag}." in line["remark"]
    assert f"credit='truncated:every=10,reach={10 + lag}' takes less" in line["remark"]


def test_where_the_gradient_dies_a_shorter_credit_is_no_remedy(small, tmp_path):
    """A sigmoid's is gone within two steps: that is said, and nothing of the credit."""
    config = small.changed(
        flow_every=1, cell="rnn", nonlinearity="sigmoid", steps=100, learning_rate=1e-5, epochs=4
    )
    run = train(config, tmp_path / "run")
    assert len(having(run, "alarm")) == 1
    assert not having(run, "remark")


def test_a_remark_stands_after_resuming(small, tmp_path):
    config = small.changed(flow_every=2, credit="truncated:2", steps=None)
    training = start(config, tmp_path / "run")
    training.fit(stop_after(training, 7))
    training.close()
    assert training.monitor.remark
    again = resume(training.run.path)
    assert again.monitor.remark == training.monitor.remark
    again.close()


def scale(training, radius):
    """Give the recurrent weights a spectral radius, and the units inputs that hardly move them."""
    recurrent = training.model.recurrent
    with torch.no_grad():
        torch.nn.init.orthogonal_(recurrent.weight_hh_l0).mul_(radius)
        recurrent.weight_ih_l0.mul_(0.01)
        recurrent.bias_ih_l0.zero_()
        recurrent.bias_hh_l0.zero_()


@pytest.mark.parametrize(
    ("radius", "says"), [(1.5, "the gradient explodes"), (0.1, "the gradient dies")]
)
def test_an_alarm_that_stands_is_said_once(small, tmp_path, radius, says):
    config = small.changed(
        cell="rnn", steps=20, flow_every=1, optimizer="sgd", learning_rate=1e-6, epochs=12
    )
    training = start(config, tmp_path / "run")
    scale(training, radius)
    training.fit()
    alarms = having(training.run, "alarm")
    # A jump of the norm may come with it.
    assert [m["alarm"].split(":")[0] for m in alarms].count(says) == 1
    assert alarms[0]["alarm"].startswith(says)
    if radius > 1:  # since nothing was learnt
        assert 100 <= alarms[0]["update"] <= 111
        assert "; the loss has not fallen in 1" in alarms[0]["alarm"]
    else:
        assert alarms[0]["update"] == 3  # in three looks


HEARD = "the gradient explodes: over the earlier half of the window the state's grew to 20 times"


def test_an_alarm_that_passes_is_not_said_and_one_that_lasts_has_an_end(small, tmp_path):
    monitor = start(small.changed(flow_every=4), tmp_path / "run").monitor
    dies, jumps = "the gradient dies: 99 %", "the gradient jumps: its norm"
    assert [monitor._alarm(HEARD, n) for n in range(10)] == [{}] * 10  # heard once
    assert [monitor._alarm(a, n) for n, a in enumerate([None, HEARD], 10)] == [{}] * 2
    assert monitor._alarm(jumps, 28) == {"alarm": jumps}
    assert monitor._alarm(dies, 29) == {"alarm": dies}
    assert monitor._alarm(dies, 30) == monitor._alarm(None, 31) == monitor._alarm(dies, 32) == {}
    found = {n: f for n in range(33, 800) if (f := monitor._alarm(None, n))}
    assert found == {
        328: {"alarm_over": "the gradient jumps: not seen since update 28"},
        332: {"alarm_over": "the gradient dies: not seen since update 32"},
    }
    assert monitor._alarm(jumps, 900) == {"alarm": jumps}


def test_a_state_that_is_not_finite_is_an_alarm_at_once(small, tmp_path):
    monitor = start(small, tmp_path / "run").monitor
    assert monitor._alarm(HEARD.replace("20", "inf"), 1)


def test_a_healthy_network_raises_no_alarm(small, tmp_path):
    for cell in NAMES:
        run = train(small.changed(cell=cell, flow_every=1, epochs=1), tmp_path / cell)
        assert not having(run, "alarm"), having(run, "alarm")[0]["alarm"]


def test_long_windows_are_looked_at_in_part(small, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module, "LARGEST", 30)
    monkeypatch.setattr("bptt._src.language_model.training.LARGEST", 30)
    training = start(small.changed(steps=50), tmp_path / "run")
    assert len(training._reach(10).kept) == 30


@pytest.mark.parametrize("rate", [4.0, 8.0, 1e5])
def test_looking_at_what_explodes_does_not_come_before_its_divergence(small, tmp_path, rate):
    config = small.changed(
        cell="rnn", nonlinearity="relu", optimizer="sgd", clip=0.0, learning_rate=rate, flow_every=1
    )
    training = start(config, tmp_path / "run")
    with pytest.raises(DivergedError):
        training.fit()
    assert having(training.run, "horizon")
    assert "the gradient" in having(training.run, "alarm")[0]["alarm"]
    for line in (training.run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
