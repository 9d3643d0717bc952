"""The verdict: on norms made by a rule, and on networks of which it is known."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from flow.foreign import Linear
from flow.made import flow_of
from torch import nn

import bptt
from bptt import gradient_flow, init
from bptt._src.flow.dynamics import measure
from bptt._src.flow.verdict import FADED, GROWN, judge, profile
from bptt.data import make_task

# ----------------------------------------------------------------------------- made by a rule


@pytest.mark.parametrize(
    ("beta", "kind"),
    [
        (0.5, "vanishing"),
        (0.7, "vanishing"),
        (0.9, "healthy"),
        (1.0, "healthy"),
        (1.1, "exploding"),
    ],
)
def test_the_kind_by_the_factor_of_a_step(beta, kind):
    """Over 29 steps: a hundredth by the middle up to β = 0.70, ten times from 1.086 on."""
    found = judge(flow_of(lambda t, k, b: beta**k))
    assert found.kind == kind


def test_the_thresholds():
    fades = FADED ** (1 / 13)  # a hundredth of lag 1 at lag 14, and half of the way is 14.5
    assert judge(flow_of(lambda t, k, b: (fades - 0.005) ** k)).kind == "vanishing"
    assert judge(flow_of(lambda t, k, b: (fades + 0.005) ** k)).kind == "healthy"
    grows = GROWN ** (1 / 28)
    assert judge(flow_of(lambda t, k, b: (grows - 0.005) ** k)).kind == "healthy"
    assert judge(flow_of(lambda t, k, b: (grows + 0.005) ** k)).kind == "exploding"


def test_the_words_have_the_figures():
    assert judge(flow_of(lambda t, k, b: 0.5**k)).words == (
        "The gradient vanishes: from 8 steps back on, which is in the first half of the 29 "
        "followed, it is less than 1 % of what it is one step back."
    )
    assert "29 steps back it is 2.68e+08 times" in judge(flow_of(lambda t, k, b: 2.0**k)).words
    words = judge(flow_of(lambda t, k, b: 0.95**k)).words
    assert words == (
        "Healthy: 29 steps back, the longest way followed, the gradient is 23.8 % of what it is "
        "one step back."
    )


def test_the_words_of_a_gradient_that_comes_most_of_the_way():
    found = judge(flow_of(lambda t, k, b: 0.8**k))  # 0.8^20 is 0.0115, 0.8^21 0.0092
    assert found == (
        "healthy",
        "Healthy: 29 steps were followed, and only from 22 steps back on the gradient is less than "
        "1 % of what it is one step back.",
    )


def test_what_comes_at_lag_0_does_not_count():
    a, b = (judge(flow_of(lambda t, k, b, z=z: z if k == 0 else 0.9**k)) for z in (1e-6, 1e6))
    assert a == b
    assert a.kind == "healthy"


def test_losses_of_different_size_do_not_look_like_growth():
    """Only the last two losses matter, as in the copy task: means by lag rise, no gradient does."""
    flow = flow_of(lambda t, k, b: 0.99**k * (1.0 if t >= 28 else 1e-3))
    assert flow.by_lag.mean[-1] > 10 * flow.by_lag.mean[1]
    assert judge(flow).kind == "healthy"
    relative = torch.tensor(profile(flow).relative[1:])
    torch.testing.assert_close(relative, 0.99 ** torch.arange(29.0).double())


@pytest.mark.parametrize(
    "factor",
    [lambda s: 1e-8 if s == 80 else 0.999, lambda s: 0.999 if s < 50 else 0.5],
    ids=["a gate that is shut once", "two halves"],
)
def test_what_is_said_of_a_lag_is_true_of_the_losses_that_have_it(factor):
    """Where the decay differs along the sequence; only one loss has the last lag."""
    steps = 100
    logs = torch.tensor([math.log(factor(s)) for s in range(steps)]).double().cumsum(0)
    flow = flow_of(lambda t, k, b: math.exp(logs[t] - logs[t - k]), steps=steps, batch=1)
    found, last = profile(flow), flow.norms[-1]
    assert found.relative[99] == pytest.approx(float(last[0] / last[98]), rel=1e-6)
    assert found.relative[99] < 1e-7
    assert found.largest < 1.01
    assert f"only from {found.faded} steps back" in judge(flow).words


def test_what_explodes_in_some_losses_only_explodes():
    rules = [lambda t, k, b, share=share: 1.2**k if t < share else 0.99**k for share in (34, 32)]
    shape = {"steps": 60, "lags": 30, "batch": 1, "times": (*range(30, 60),)}
    most, few = (flow_of(rule, **shape) for rule in rules)
    assert judge(most).kind == "exploding"
    assert "29 steps back it is 165 times as large" in judge(most).words
    assert judge(most).words.count("in a tenth of the losses") == 0  # 22 times on average
    assert judge(few).kind == "healthy"


def test_a_loss_that_is_no_number_is_no_explosion():
    flow = gradient_flow(bptt.GRU(3, 4), torch.full((30, 2, 3), math.nan))
    assert flow.verdict.kind == "undetermined"
    assert "the loss of step 0 is not a finite number itself" in flow.verdict.words


def test_the_cell_counts_as_the_hidden_state_does():
    flow = flow_of(lambda t, k, b: 0.5**k, names=("hidden", "cell"))
    hidden, cell = flow.states
    cell = dataclasses.replace(cell, norms=torch.where(cell.norms > 0, 1.0, cell.norms))
    kept = dataclasses.replace(flow, states=(hidden, cell))
    assert (judge(flow).kind, judge(kept).kind) == ("vanishing", "healthy")


def test_only_some_lags_and_losses():
    flow = flow_of(lambda t, k, b: 0.8**k, lags=10, times=(3, 20, 29))
    assert judge(flow).kind == "healthy"  # 0.8^8 = 17 % at the longest lag followed
    torch.testing.assert_close(
        torch.tensor(profile(flow).relative[1:]), 0.8 ** torch.arange(9.0).double()
    )


@pytest.mark.parametrize(
    ("rule", "options", "kind", "words"),
    [
        (lambda t, k, b: 0.5**k, {"lags": 4}, "undetermined", "4 lags were followed"),
        (lambda t, k, b: 0.5**k, {"steps": 1}, "undetermined", "1 lag was followed"),
        (lambda t, k, b: float(k == 0), {}, "dead", "no gradient at all"),
        (lambda t, k, b: 0.0, {}, "dead", "no gradient at all"),
        (lambda t, k, b: math.inf if k > 7 else 1.0, {}, "exploding", "any more 8 steps back"),
        (lambda t, k, b: math.nan if k > 7 else 1.0, {}, "exploding", "any more 8 steps back"),
    ],
)
def test_edges(rule, options, kind, words):
    found = judge(flow_of(rule, **options))
    assert found.kind == kind
    assert words in found.words


def test_a_short_sequence_does_not_tell_whether_a_gradient_fades_early():
    """From lag 8 on it is below a hundredth: early among 29, who knows among 12."""
    short, long = (flow_of(lambda t, k, b: 0.5**k, steps=n) for n in (13, 30))
    assert (judge(short).kind, judge(long).kind) == ("undetermined", "vanishing")
    assert "from 8 steps back" in judge(short).words
    assert "in the second half of the 12 that were followed: not early enough" in judge(short).words
    assert judge(flow_of(lambda t, k, b: 0.1**k, steps=13)).kind == "vanishing"
    assert judge(flow_of(lambda t, k, b: 0.9**k, steps=13)).kind == "healthy"


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.55, 0.6, 0.65, 0.7])
def test_what_an_undetermined_verdict_asks_for_decides(beta):
    """Neither one step less does, nor does it matter what is too short: sequence or lags."""
    for steps in range(6, 21):
        for shape in ({"steps": steps}, {"steps": 40, "lags": steps}):
            found = judge(flow_of(lambda t, k, b: beta**k, **shape))
            if found.kind != "undetermined":
                continue
            asks = re.search(r"To decide, follow (\d+) steps back: (.*)\.$", found.words)
            back, what = asks.groups()
            asked = int(back) + 1
            assert what == (f"lags={asked}" if "lags" in shape else f"a sequence of {asked} steps")
            shape["lags" if "lags" in shape else "steps"] = asked
            decided = judge(flow_of(lambda t, k, b: beta**k, **shape))
            assert decided.kind in ("vanishing", "healthy")
            shape["lags" if "lags" in shape else "steps"] = asked - 1
            assert judge(flow_of(lambda t, k, b: beta**k, **shape)).kind == "undetermined"


def test_what_is_asked_for_names_sequence_and_lags_where_both_are_short():
    words = judge(flow_of(lambda t, k, b: 0.5**k, steps=14, lags=13)).words
    assert words.endswith("To decide, follow 16 steps back: a sequence of 17 steps and lags=17.")


def test_a_gradient_that_ends_vanishes():
    found = judge(flow_of(lambda t, k, b: float(k < 6)))
    assert found.kind == "vanishing"
    assert "from 6 steps back on" in found.words


# ------------------------------------------------------------------------------------ networks

STEPS = 50


def verdict(module, scale=0.1):
    x = scale * torch.randn(STEPS, 4, 3)
    return gradient_flow(module, x, attribution=False).verdict


@pytest.mark.parametrize(
    ("radius", "kind"), [(0.5, "vanishing"), (1.0, "healthy"), (1.5, "exploding")]
)
def test_the_spectral_radius_decides(radius, kind):
    rnn = bptt.RNN(3, 100)
    nn.init.normal_(rnn.weight_hh_l0, 0, 0.1)
    assert verdict(init.spectral_radius_(rnn, radius)).kind == kind


@pytest.mark.parametrize(
    ("radius", "kind"), [(0.8, "vanishing"), (0.99, "healthy"), (1.2, "exploding")]
)
def test_a_linear_network_of_known_radius(radius, kind):
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    flow = gradient_flow(
        Linear(radius * turn), torch.zeros(STEPS, 2, 1).double(), state=torch.ones(2, 6).double()
    )
    assert flow.verdict.kind == kind
    assert flow.decay.beta == pytest.approx(radius, rel=1e-6)  # a rotation times the radius


def test_sigmoid_beside_tanh():
    """With orthogonal weights a tanh keeps what a sigmoid quarters, at best."""
    tanh, sigmoid = (
        init.orthogonal_(bptt.RNN(3, 64, nonlinearity=phi)) for phi in ("tanh", "sigmoid")
    )
    assert verdict(tanh).kind == "healthy"
    assert verdict(sigmoid).kind == "vanishing"
    flow = gradient_flow(sigmoid, torch.randn(STEPS, 4, 3), attribution=False)
    assert flow.decay.beta <= 0.25
    assert (profile(flow).relative[2:12] <= 0.26 ** torch.arange(1, 11).numpy()).all()


def test_relu_with_the_identity():
    assert verdict(init.identity_(bptt.RNN(3, 64, nonlinearity="relu"))).kind == "healthy"
    assert verdict(bptt.RNN(3, 64, nonlinearity="relu")).kind == "vanishing"


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_chrono_reaches_further_than_a_forget_bias_of_1(kind):
    cells = [getattr(bptt, kind)(3, 64) for _ in range(3)]
    init.forget_bias_(cells[1])
    init.chrono_(cells[2], STEPS)
    x = torch.randn(STEPS, 4, 3)
    flows = [gradient_flow(cell, x, attribution=False) for cell in cells]
    assert (flows[0].verdict.kind, flows[2].verdict.kind) == ("vanishing", "healthy")
    gone = [profile(flow).faded or STEPS for flow in flows]
    assert gone[0] < gone[1] < gone[2]


# --------------------------------------------------------------------------------------- units


def of_units(module, x):
    flow = gradient_flow(module, x, attribution=False, dynamics=False)
    return dataclasses.replace(flow, dynamics=measure(module, x)).verdict


def test_dead_and_saturated_units_are_in_the_words():
    relu = bptt.RNN(3, 20, nonlinearity="relu")
    with torch.no_grad():
        relu.bias_ih_l0[:5] = -100
    words = of_units(relu, torch.randn(30, 4, 3)).words
    assert words.endswith("25 % of the units are dead: they never change.")
    tanh = bptt.RNN(3, 20, num_layers=2)
    with torch.no_grad():
        tanh.weight_ih_l1 *= 100
    words = of_units(tanh, torch.randn(30, 4, 3)).words
    assert "of the units' values in layer 2 are saturated" in words
    assert "layer 1" not in words


def test_units_at_work_are_not_mentioned():
    for module in (
        bptt.RNN(3, 20),
        init.identity_(bptt.RNN(3, 20, nonlinearity="relu")),  # off half of the time
        init.chrono_(bptt.LSTM(3, 20), 100),  # most gates at their ends
    ):
        words = of_units(module, torch.randn(30, 4, 3)).words
        assert "dead" not in words
        assert "saturated" not in words


# ------------------------------------------------------------------------------- what is learnt


def learn(cell, task, updates):
    """Train on a task; the flow of the answer's loss before and after, and the accuracy."""
    recurrent, readout = getattr(bptt, cell)(task.inputs, 32), nn.Linear(32, task.outputs)
    if cell == "LSTM":
        init.chrono_(recurrent, task.lag)
    parameters = [*recurrent.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    generator = torch.Generator().manual_seed(1)

    def flow():
        batch = task.batch(generator)
        targets = batch.targets.flatten()

        def losses(h):
            found = nn.functional.cross_entropy(readout(h).flatten(0, 1), targets, reduction="none")
            return found.view_as(batch.targets)

        return gradient_flow(recurrent, batch.inputs, losses, times=[task.steps - 1])

    before = flow()
    for _ in range(updates):
        batch = task.batch(generator)
        optimizer.zero_grad()
        task.loss(readout(recurrent(batch.inputs)[0]), batch).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    batch = task.batch(generator)
    return before, flow(), task.accuracy(readout(recurrent(batch.inputs)[0]), batch)


def test_the_horizon_covers_the_lag_that_was_learnt():
    task = make_task("copy", lag=20, symbols=1)
    _, after, accuracy = learn("LSTM", task, 700)
    assert accuracy > 0.9
    assert task.lag <= after.horizon()
    assert after.verdict.kind == "healthy"


def test_the_horizon_of_a_network_that_failed_does_not():
    task = make_task("copy", lag=20, symbols=1)
    _, after, accuracy = learn("RNN", task, 400)
    assert accuracy < 0.5
    assert after.horizon() < 15
    assert after.settles()
