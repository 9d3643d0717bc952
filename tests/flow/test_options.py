"""Every option has an effect, on every kind of module, or is refused.

The cases below say so for each parameter of what measures a gradient. One that is added without a
case fails :func:`test_every_option_has_a_case`.
"""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from torch import nn

import bptt
from bptt._src.flow.dynamics import measure
from bptt._src.flow.lags import find_horizon, fit_decay
from bptt._src.flow.truncation import tail

T, B, INPUTS, H = 14, 3, 2, 4

X = torch.randn(T, B, INPUTS, generator=torch.Generator().manual_seed(1))
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[7, 1] = RESETS[10, 0] = True


class Foreign(nn.Module):
    """A network behind a forward of its own."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, state=None):
        return self.rnn(x, state)


def ours(**options):
    return bptt.LSTM(INPUTS, H, num_layers=2, **options)


def theirs(**options):
    return nn.LSTM(INPUTS, H, num_layers=2, **options)


def foreign(**options):
    module = Foreign(nn.LSTM(INPUTS, H, num_layers=2, **options))
    if options.get("batch_first"):
        module.batch_first = True
    return module


KINDS = {"ours": ours, "torch.nn": theirs, "foreign": foreign}


def state():
    return tuple(torch.ones(2, B, H) for _ in range(2))


def each(y):
    return y.square().sum(2)


def across(y):
    return each(y).cumsum(0)


def total(y):
    return y.square().mean()


class StateFirst(nn.Module):
    """Its state is [B, 2, H], and it does not say so; with 2 sequences both places would do."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(INPUTS, H, num_layers=2)

    def forward(self, x, state=None):
        y, h = self.rnn(x, None if state is None else state.transpose(0, 1).contiguous())
        return y, h.transpose(0, 1)


class TimeSecond(nn.Module):
    """Its inputs are [B, T, ...], and it does not say so."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(INPUTS, H, batch_first=True)

    def forward(self, x, state=None):
        return self.rnn(x, state)


# ------------------------------------------------------------------------------- what they say


def unchecked(function):
    """A function as users have it: the tests check annotations before it does."""
    return inspect.unwrap(function)


def of_flow(flow):
    """All that was measured, to the last bit."""
    tensors = [*(s.norms for s in flow.states), flow.losses]
    tensors += [] if flow.attribution is None else [flow.attribution]
    dynamics = [layer.to_dict() for layer in flow.dynamics or ()]
    words = (flow.name, flow.tokens, flow.targets, flow.times, flow.lags)
    return str(([v.tolist() for v in tensors], dynamics, words))


def flow_of(module, x=X, *args, **options):
    return of_flow(bptt.gradient_flow(module, x, *args, **options))


def meter_of(module, x=X, *args, options=None, **more):
    return str(bptt.FlowMeter(module, **(options or {})).look(x, *args, **more)._asdict())


def update_of(module, *args, **options):
    meter = bptt.FlowMeter(module, every=1)
    return str(meter.update(*args, **options))


def penalty_of(module, x=X, loss_fn=total, **options):
    return float(bptt.vanishing_penalty(module, x, loss_fn, **options).detach())


def exponents_of(module, x=X, *args, **options):
    found = bptt.lyapunov_exponents(module, x, *args, **options)
    return found.exponents.tolist(), found.steps, found.warmup


def dynamics_of(module, x=X, *args, **options):
    return json.dumps([layer.to_dict() for layer in measure(module, x, *args, **options)])


def both_layouts(function, **options):
    """``batch_first`` where the module says nothing: the same as of one that says so."""
    torch.manual_seed(0)
    silent = TimeSecond()
    saying = TimeSecond()
    saying.load_state_dict(silent.state_dict())
    saying.batch_first = True
    x = X.transpose(0, 1)
    told = function(silent, x, **options, batch_first=True)
    with pytest.raises(ValueError, match="batch_first"):
        function(silent, X, **options)
    return told, function(saying, x, **options)


# ------------------------------------------------------------------------------------- the cases

CASES = {}
"""``(function, parameter) -> a case``, which takes a kind of module and returns two results that
must differ, or a function that must raise and what."""


def case(function, *parameters, error=None):
    def note(f):
        for parameter in parameters:
            CASES[function, parameter] = (f, error)
        return f

    return note


def case_of_all(functions, parameter):
    def note(f):
        for name, function in functions.items():
            CASES[name, parameter] = (lambda kind, function=function: f(kind, function), None)
        return f

    return note


RUN = {
    "gradient_flow": flow_of,
    "FlowMeter.look": meter_of,
    "vanishing_penalty": penalty_of,
    "lyapunov_exponents": exponents_of,
    "measure": dynamics_of,
}


@case_of_all(RUN, "module")
def _(kind, function):
    torch.manual_seed(1)
    return function(KINDS[kind]()), function(KINDS[kind]())


CASES["FlowMeter", "module"] = CASES.pop(("FlowMeter.look", "module"))


@case_of_all(RUN, "inputs")
def _(kind, function):
    module = KINDS[kind]()
    return function(module, X), function(module, 3 * X)


@case_of_all(RUN, "state")
def _(kind, function):
    module = KINDS[kind]()
    return function(module), function(module, state=state())


@case_of_all(RUN, "resets")
def _(kind, function):
    module = KINDS[kind]()
    last = torch.arange(T) == T - 3
    found = [function(module, **o) for o in ({}, {"resets": last}, {"resets": RESETS})]
    assert found[0] != found[2]
    turned = KINDS[kind](batch_first=True)
    turned.load_state_dict(module.state_dict())
    x = X.transpose(0, 1)
    loss = {"loss_fn": lambda y: total(y)} if function is penalty_of else {}
    if function in (penalty_of, exponents_of):
        close = pytest.approx(found[2], rel=1e-4) if function is penalty_of else found[2]
        now = function(turned, x, resets=RESETS.t(), **loss)
        if function is exponents_of:
            assert now[0] == pytest.approx(close[0], rel=1e-3)
        else:
            assert now == close
    with pytest.raises(ValueError, match="transpose it"):
        function(turned, x, resets=RESETS)
    return found[0], found[1]


def both_meters(module, x, batch_first=None):
    return meter_of(module, x, options={"batch_first": batch_first})


for name, function in {**RUN, "FlowMeter": both_meters}.items():

    def _layout(kind, function=function):
        if kind == "foreign":
            told, said = both_layouts(function)
            assert told == said
            return 0, 1
        with pytest.raises(ValueError, match="batch_first=True was given"):
            function(KINDS[kind](), X, batch_first=True)
        return 0, 1

    CASES[name, "batch_first"] = (_layout, None)

    def _state_dim(kind, function=function):
        def run(module, x, dim):
            if function is both_meters:
                return meter_of(module, x, options={"state_batch_dim": dim})
            return function(module, x, state_batch_dim=dim)

        if kind != "foreign":
            with pytest.raises(ValueError, match="state_batch_dim=0 was given"):
                run(KINDS[kind](), X, 0)
            return 0, 1
        module, x = StateFirst(), X[:, :2]
        with pytest.raises(ValueError, match="depends on the state of another one"):
            run(module, x, 1)
        run(module, x, 0)
        return 0, 1

    CASES[name, "state_batch_dim"] = (_state_dim, None)

del CASES["FlowMeter.look", "batch_first"], CASES["FlowMeter.look", "state_batch_dim"]


@case("gradient_flow", "loss_fn")
def _(kind):
    module = KINDS[kind]()
    return flow_of(module), flow_of(module, X, each)


@case("gradient_flow", "times")
def _(kind):
    module = KINDS[kind]()
    return flow_of(module), flow_of(module, times=[3, 9])


@case("gradient_flow", "lags")
def _(kind):
    module = KINDS[kind]()
    return flow_of(module), flow_of(module, lags=4)


@case("gradient_flow", "attribution")
def _(kind):
    module = KINDS[kind]()
    with pytest.raises(TypeError, match="attribution must be True, False or None, got 'full'"):
        unchecked(bptt.gradient_flow)(module, X, attribution="full")
    with pytest.raises(ValueError, match="needs inputs that are floating-point"):
        bptt.gradient_flow(
            nn.Embedding(3, 2), torch.zeros(T, B, dtype=torch.long), attribution=True
        )
    assert flow_of(module, attribution=True) == flow_of(module)
    return flow_of(module), flow_of(module, attribution=False)


@case("gradient_flow", "dynamics")
def _(kind):
    module = KINDS[kind]()
    with pytest.raises(TypeError, match="dynamics must be True, False or None, got 1"):
        unchecked(bptt.gradient_flow)(module, X, dynamics=1)
    assert (bptt.gradient_flow(module, X).dynamics is None) == (kind == "foreign")
    return flow_of(module, dynamics=True), flow_of(module, dynamics=False)


@case("gradient_flow", "excerpt")
def _(kind):
    module = bptt.init.forget_bias_(KINDS[kind](), 4.0)  # that it goes on beyond the excerpt
    return [tail(bptt.gradient_flow(module, X, excerpt=e)).coherent[3] for e in (False, True)]


@case("gradient_flow", "tokens", "targets")
def _(kind):
    words = [str(n) for n in range(T)]
    module = KINDS[kind]()
    with pytest.raises(ValueError, match="expected tokens for 14 steps, got a single string"):
        flow_of(module, tokens="a" * T)
    assert flow_of(module, tokens=words) != flow_of(module)
    return flow_of(module), flow_of(module, targets=words)


@case("gradient_flow", "name")
def _(kind):
    module = KINDS[kind]()
    return flow_of(module), flow_of(module, name="one")


@case("gradient_flow", "budget")
def _(kind):
    with pytest.raises(ValueError, match="budget must be a number of bytes, got 0"):
        flow_of(KINDS[kind](), budget=0)
    return 0, 1


@case("gradient_flow", "check")
def _(kind):
    module = KINDS[kind]()
    with pytest.raises(ValueError, match="depends on the outputs of other steps"):
        flow_of(module, X, across)
    flow_of(module, X, across, check=False)
    return 0, 1


@case("FlowMeter", "every")
def _(kind):
    meters = [bptt.FlowMeter(KINDS[kind](), every=every) for every in (1, 2)]
    return [m.update(1.0, X).probe is None for m in meters]


@case("FlowMeter", "lags")
def _(kind):
    module = KINDS[kind]()
    return meter_of(module), meter_of(module, options={"lags": 4})


@case("FlowMeter", "threshold")
def _(kind):
    module = KINDS[kind]()
    return meter_of(module), meter_of(module, options={"threshold": 0.3})


@case("FlowMeter.look", "loss_fn")
def _(kind):
    module = KINDS[kind]()
    return meter_of(module), meter_of(module, X, each)


@case("FlowMeter.update", "norm")
def _(kind):
    module = KINDS[kind]()
    with pytest.raises(ValueError, match="no parameter of the module has a gradient"):
        update_of(module)
    with pytest.raises(TypeError, match="expected the gradient's norm"):
        unchecked(bptt.FlowMeter.update)(bptt.FlowMeter(module), "1.0")
    return update_of(module, 1.0), update_of(module, 2.0)


@case("FlowMeter.update", "inputs")
def _(kind):
    return update_of(KINDS[kind](), 1.0), update_of(KINDS[kind](), 1.0, X)


@case("FlowMeter.update", "loss_fn", "state", "resets")
def _(kind):
    module = KINDS[kind]()
    reset = torch.arange(T) == T - 3
    for option in ({"loss_fn": each}, {"state": state()}, {"resets": reset}):
        with pytest.raises(ValueError, match="belong to a batch; give its inputs too"):
            update_of(module, 1.0, **option)
    found = []
    for option in ({}, {"loss_fn": each}, {"state": state()}, {"resets": reset}):
        meter = bptt.FlowMeter(module, every=1)
        found.append(meter.update(1.0, X, **option).probe.by_lag)
    assert len({*found}) == 4
    return 0, 1


def alarm_at_a_jump(kind, *, losses=None, **options):
    """What is said of a gradient whose norm jumps, while the loss falls if it is given."""
    meter = bptt.FlowMeter(KINDS[kind](), **options)
    for n in range(20):
        reading = meter.update(1.0 if n < 19 else 1000.0, loss=losses and losses / (n + 1))
    return reading.alarm


@case("FlowMeter", "clipped")
def _(kind):
    return [alarm_at_a_jump(kind, losses=2.0, clipped=clipped) for clipped in (False, True)]


@case("FlowMeter.update", "loss")
def _(kind):
    return [alarm_at_a_jump(kind, losses=losses, clipped=True) for losses in (None, 2.0)]


@case("FlowMeter.load_state_dict", "state")
def _(kind):
    meter = bptt.FlowMeter(KINDS[kind](), every=1)
    meter.update(1.0, X)
    other = bptt.FlowMeter(KINDS[kind](), every=1)
    before = other.state_dict()
    other.load_state_dict(meter.state_dict())
    assert other.state_dict() == meter.state_dict()
    return before, other.state_dict()


@case("vanishing_penalty", "loss_fn")
def _(kind):
    module = KINDS[kind]()
    return penalty_of(module), penalty_of(module, X, lambda y: y[-1].sum())


@case("lyapunov_exponents", "k")
def _(kind):
    module = KINDS[kind]()
    with pytest.raises(ValueError, match=r"k must be a whole number, got 2\.5"):
        unchecked(bptt.lyapunov_exponents)(module, X, k=2.5)
    return exponents_of(module, k=1), exponents_of(module, k=2)


@case("lyapunov_exponents", "warmup")
def _(kind):
    module = KINDS[kind]()
    return exponents_of(module, warmup=0), exponents_of(module, warmup=5)


@case("fit_decay", "found", "smallest")
def _(kind):
    flow = bptt.gradient_flow(KINDS[kind](), X)
    other = bptt.gradient_flow(KINDS[kind](), X)
    assert fit_decay(flow.by_lag) != fit_decay(other.by_lag)
    return fit_decay(flow.by_lag), fit_decay(flow.by_lag, 0.05)


@case("find_horizon", "found", "decay", "threshold")
def _(kind):
    long, short = bptt.gradient_flow(KINDS[kind](), X), bptt.gradient_flow(KINDS[kind](), X, lags=2)
    assert find_horizon(long.by_lag, None) != find_horizon(short.by_lag, None)
    lasting = long.decay._replace(beta=0.999)
    found = [find_horizon(long.by_lag, decay, 0.01).reached for decay in (long.decay, lasting)]
    assert found == [True, False]
    return find_horizon(long.by_lag, None), find_horizon(long.by_lag, None, 0.3)


# ------------------------------------------------------------------ what a flow can be asked for


def a_flow(kind):
    return bptt.gradient_flow(KINDS[kind](), X)


@case("GradientFlow.of", "layer")
@case("GradientFlow.of_each", "layer")
def _(kind):
    flow = a_flow(kind)
    with pytest.raises(ValueError, match="no state is None of layer 2"):
        flow.of(layer=2)
    assert (flow.of(layer=0) != flow.of(layer=1)).any()
    return flow.of_each(layer=0).tolist(), flow.of_each(layer=1).tolist()


@case("GradientFlow.of", "name")
@case("GradientFlow.of_each", "name")
def _(kind):
    flow = a_flow(kind)
    names = list(dict.fromkeys(s.name for s in flow.states))
    with pytest.raises(ValueError, match="no state is 'memory'"):
        flow.of(name="memory")
    assert (flow.of(name=names[0]) != flow.of(name=names[1])).any()
    return flow.of_each(name=names[0]).tolist(), flow.of_each(name=names[1]).tolist()


@case("GradientFlow.of", "sequence")
def _(kind):
    flow = a_flow(kind)
    with pytest.raises(ValueError, match="there are 3 sequences, got sequence=3"):
        flow.of(sequence=3)
    return flow.of(sequence=0).tolist(), flow.of(sequence=1).tolist()


@case("GradientFlow.horizon", "threshold")
@case("GradientFlow.settles", "threshold")
def _(kind):
    flow = a_flow(kind)
    for ask in (flow.horizon, flow.settles):
        with pytest.raises(ValueError, match="threshold must be between 0 and 1, got 1"):
            ask(1)
    short = bptt.gradient_flow(KINDS[kind](), X, lags=3)
    assert short.settles(0.9) != short.settles(1e-6)
    return flow.horizon(0.01), flow.horizon(0.5)


@case("GradientFlow.suggest_truncation", "bias")
@case("GradientFlow.suggestion", "bias")
def _(kind):
    flow = a_flow(kind)
    for wrong in (0, 1, -0.1):
        with pytest.raises(ValueError, match="bias must be between 0 and 1"):
            flow.suggest_truncation(wrong)
    assert flow.suggestion(0.5) != flow.suggestion(0.001)
    return flow.suggest_truncation(0.5), flow.suggest_truncation(0.001)


@case("GradientFlow.suggest_truncation", "every")
@case("GradientFlow.suggestion", "every")
def _(kind):
    flow = a_flow(kind)
    return flow.suggestion(0.05), flow.suggestion(0.05, every=3)


@case("GradientFlow.save_html", "path", "others")
def _(kind, tmp_path=None):
    import tempfile
    from pathlib import Path

    flow, other = a_flow(kind), bptt.gradient_flow(KINDS[kind](), X, name="another")
    with tempfile.TemporaryDirectory() as directory:
        one, two = Path(directory) / "one.html", Path(directory) / "two.html"
        flow.save_html(one)
        flow.save_html(str(two), other)
        return one.read_text(), two.read_text()


@case("GradientFlow.figure", "others")
def _(kind):
    flow, other = a_flow(kind), bptt.gradient_flow(KINDS[kind](), X, name="another")
    one, two = flow.figure(), flow.figure(other)
    return [sum(len(a.lines) + len(a.images) for a in f.axes) for f in (one, two)]


@case("GradientFlow.to_text", "others")
def _(kind):
    flow, other = a_flow(kind), bptt.gradient_flow(KINDS[kind](), X, name="another")
    return flow.to_text(), flow.to_text(other)


# ------------------------------------------------------------------------------------- the hunt


def hunted():
    """Each parameter of each function that measures, and of the methods of what it returns."""
    functions = {
        "gradient_flow": bptt.gradient_flow,
        "vanishing_penalty": bptt.vanishing_penalty,
        "lyapunov_exponents": bptt.lyapunov_exponents,
        "measure": measure,
        "fit_decay": fit_decay,
        "find_horizon": find_horizon,
        "FlowMeter": bptt.FlowMeter,
    }
    for kind in (bptt.FlowMeter, bptt.GradientFlow):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                functions[f"{kind.__name__}.{name}"] = method
    return {
        (name, parameter)
        for name, function in functions.items()
        for parameter in inspect.signature(function).parameters
        if parameter != "self"
    }


def test_every_option_has_a_case():
    assert hunted() - CASES.keys() == set(), "without a case"
    assert CASES.keys() - hunted() == set(), "of an option that is no more"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", sorted(hunted()), ids=" ".join)
def test_every_option_changes_something_or_is_refused(option, kind):
    run, _ = CASES[option]
    one, another = run(kind)
    assert one != another
