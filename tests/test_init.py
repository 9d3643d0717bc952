"""bptt.init: what each function sets, on every module it is for, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bptt
from bptt import init
from bptt.cells import (
    BY_NAME,
    CELLS,
    INDRNN,
    LIF,
    MGU,
    MIN_GRU,
    RATE,
    Cell,
    Keeping,
    Leak,
    dales_law,
    make_lif,
    make_rate,
)
from bptt.cells.elman import TANH
from bptt.errors import ConfigError

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def modules(kind, hidden=6):
    """Every module of a kind: ours, torch's, two layers and directions, cells, one that has one."""
    cell = getattr(nn, f"{kind}Cell")
    return [
        getattr(bptt, kind)(3, hidden),
        getattr(nn, kind)(3, hidden, num_layers=2, bidirectional=True),
        cell(3, hidden),
        bptt.Stepwise(cell(3, hidden)),
        nn.ModuleDict({"a": getattr(bptt, kind)(3, hidden), "b": nn.Linear(hidden, 2)}),
    ]


def of(module, what):
    """The parameters of a module whose last name begins so."""
    return [p for name, p in module.named_parameters() if name.split(".")[-1].startswith(what)]


def total_biases(module, gate):
    """bias_ih + bias_hh of a gate, for each layer."""
    pairs = zip(of(module, "bias_ih"), of(module, "bias_hh"), strict=True)
    gates = GATES[next(k for k in ("RNN", "GRU", "LSTM") if k in str(module))]
    return [(a + b).detach().chunk(gates)[gate] for a, b in pairs]


def changed(module, apply):
    """The names of the parameters that a function changes; it has to return the module."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    requires = [p.requires_grad for p in module.parameters()]
    assert apply(module) is module
    assert [p.requires_grad for p in module.parameters()] == requires
    assert all(p.grad_fn is None and p.is_leaf for p in module.parameters())
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


CASES = [(kind, n) for kind in GATES for n in range(5)]


@pytest.mark.parametrize(("kind", "n"), CASES)
def test_orthogonal(kind, n):
    module = modules(kind)[n]
    names = changed(module, lambda m: init.orthogonal_(m, gain=0.7))
    assert len(of(module, "weight_hh")) == (4 if n == 1 else 1)
    assert names == {k for k, _ in module.named_parameters() if "weight_hh" in k}
    for hh in of(module, "weight_hh"):
        for block in hh.detach().chunk(GATES[kind]):
            torch.testing.assert_close(block @ block.T, 0.49 * torch.eye(6), atol=1e-5, rtol=0)


def test_blocks_of_a_gate_differ_and_projections_are_semi_orthogonal():
    lstm = init.orthogonal_(bptt.LSTM(3, 6, proj_size=2, dtype=torch.float64))
    blocks = lstm.weight_hh_l0.detach().chunk(4)
    for block in blocks:
        torch.testing.assert_close(block.T @ block, torch.eye(2, dtype=torch.float64))
    assert not torch.allclose(blocks[0], blocks[1])


def test_the_generator_decides():
    def draw(seed):
        rnn = bptt.RNN(2, 4)
        init.orthogonal_(rnn, generator=torch.Generator().manual_seed(seed))
        lstm = init.chrono_(bptt.LSTM(2, 4), 9, generator=torch.Generator().manual_seed(seed))
        return torch.cat([rnn.weight_hh_l0.flatten(), lstm.bias_ih_l0[4:8]])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(draw(1)[16:], draw(2)[16:])


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_identity(n, scale):
    module = modules("RNN")[n]
    names = changed(module, lambda m: init.identity_(m, scale))
    assert not any("weight_ih" in k for k in names)
    for hh in of(module, "weight_hh"):
        assert torch.equal(hh.detach(), scale * torch.eye(6))
    for b in of(module, "bias_"):
        assert not b.detach().any()


def test_identity_of_a_network_without_biases():
    rnn = init.identity_(bptt.RNN(2, 3, nonlinearity="relu", bias=False))
    assert torch.equal(rnn.weight_hh_l0.detach(), torch.eye(3))


def test_an_active_network_of_identity_and_relu_keeps_state_and_gradient():
    rnn = init.identity_(bptt.RNN(2, 3, nonlinearity="relu"))
    h0 = torch.rand(1, 1, 3).requires_grad_()
    y, _ = rnn(torch.zeros(50, 1, 2), h0)
    y[-1].sum().backward()
    assert torch.equal(y[-1], h0.detach()[0])
    assert torch.equal(h0.grad, torch.ones(1, 1, 3))


@pytest.mark.parametrize(("kind", "n"), [c for c in CASES if c[0] != "RNN"])
def test_chrono_spreads_times_from_two_to_the_longest(kind, n):
    module = modules(kind, hidden=400)[n]
    names = changed(module, lambda m: init.chrono_(m, 20))
    assert all("bias" in k for k in names)
    keeps = total_biases(module, 1)  # LSTM: f of i, f, g, o; GRU: z of r, z, n
    assert len(keeps) == (4 if n == 1 else 1)
    for b in keeps:
        times = 1 / (1 - b.double().sigmoid())
        assert times.min() >= 2 - 1e-4
        assert times.max() <= 20 + 1e-3
        # Uniform from 2 to 20: mean 11, standard deviation 18/√12 = 5.2; 400 of them.
        assert abs(times.mean() - 11) < 5 * 5.2 / math.sqrt(400)
        assert abs(times.std() - 18 / math.sqrt(12)) < 0.8
    if kind == "LSTM":
        for b_i, b_f in zip(total_biases(module, 0), keeps, strict=True):
            assert torch.equal(b_i, -b_f)


def test_chrono_leaves_the_other_gates():
    lstm, gru = bptt.LSTM(2, 3), bptt.GRU(2, 3)
    before = lstm.bias_ih_l0.detach().clone(), gru.bias_ih_l0.detach().clone()
    init.chrono_(lstm, 5), init.chrono_(gru, 5)
    assert torch.equal(lstm.bias_ih_l0[6:], before[0][6:])
    assert torch.equal(gru.bias_ih_l0[:3], before[1][:3])
    assert torch.equal(gru.bias_ih_l0[6:], before[1][6:])


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_the_state_is_kept_where_the_chrono_bias_is_large(kind):
    """The sign, seen in what the network does: weights of zero, a state, many steps."""
    module = getattr(bptt, kind)(1, 40)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    init.chrono_(module, 1000)
    one = torch.ones(1, 1, 40)
    with torch.no_grad():
        _, state = module(torch.zeros(10, 1, 1), one if kind == "GRU" else (one, one))
    kept = state[0] if kind == "GRU" else state[1][0]
    b = total_biases(module, 1)[0]
    torch.testing.assert_close(kept[0], b.sigmoid() ** 10)
    assert kept.mean() > 0.9  # with the other sign it were 0


@pytest.mark.parametrize(("kind", "n"), [c for c in CASES if c[0] != "RNN"])
def test_forget_bias(kind, n):
    module = modules(kind)[n]
    names = changed(module, lambda m: init.forget_bias_(m, 1.5))
    assert all("bias" in k for k in names)
    for b in total_biases(module, 1):
        assert b.tolist() == [1.5] * 6


def test_the_forget_bias_is_one_by_default():
    assert total_biases(init.forget_bias_(bptt.LSTM(2, 4)), 1)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_spectral_radius(n, radius):
    module = modules("RNN")[n]
    names = changed(module, lambda m: init.spectral_radius_(m, radius))
    assert names == {k for k, _ in module.named_parameters() if "weight_hh" in k}
    for hh in of(module, "weight_hh"):
        found = torch.linalg.eigvals(hh.detach()).abs().max()
        assert abs(float(found) - radius) < 1e-5


@pytest.mark.parametrize(
    ("apply", "module", "message"),
    [
        (init.orthogonal_, nn.Linear(2, 2), "expected a recurrent module.*got Linear"),
        (init.identity_, bptt.GRU(2, 2), r"for RNN, RATE \(.*\), got GRU; use chrono_ or "),
        (init.identity_, bptt.Recurrent(MGU, 2, 2), "got Recurrent of MGU; use chrono_ or "),
        (
            init.spectral_radius_,
            bptt.Recurrent(TANH, 2, 4, proj_size=2),
            "got Recurrent of RNN_TANH with proj_size; use orthogonal_$",
        ),
        (
            init.forget_bias_,
            bptt.Recurrent(dataclasses.replace(MGU, keeping=None), 2, 2),
            "got Recurrent of MGU",
        ),
        (init.spectral_radius_, nn.LSTM(2, 2), "got LSTM; use chrono_ or .* or orthogonal_$"),
        (lambda m: init.chrono_(m, 10), bptt.RNN(2, 2), "for GRU, LSTM, .*, got RNN; use orth"),
        (
            lambda m: init.chrono_(m, 10),
            bptt.Recurrent(RATE, 2, 3),
            r"whose leak is fixed, 1/alpha = 5 steps: .*make_rate\(alpha=1 / L\).*alpha=None",
        ),
        (
            lambda m: init.chrono_(m, 10),
            bptt.Recurrent(LIF, 2, 3),
            r"whose leak is fixed, 1/alpha = 10 steps: .*make_lif\(beta=1 - 1 / L\)",
        ),
        (
            init.forget_bias_,
            bptt.Recurrent(make_rate(None), 2, 3),
            "got Recurrent of RATE; use chrono_ or orthogonal_ or identity_ or spectral_radius_$",
        ),
        (init.orthogonal_, bptt.Recurrent(INDRNN, 2, 3), "set its weights yourself, under torch"),
        (init.orthogonal_, bptt.Recurrent(MIN_GRU, 2, 3), "got Recurrent of MIN_GRU; use chrono_"),
        (
            init.orthogonal_,
            dales_law(bptt.Recurrent(RATE, 2, 3)),
            "weight_hh_l0 obeys Dale's law, .*spectral radius, give bptt.cells.dales_law radius=",
        ),
        (init.forget_bias_, nn.RNNCell(2, 2), "for GRU, LSTM, .*, got RNNCell"),
        (
            init.orthogonal_,
            parametrizations.orthogonal(bptt.RNN(2, 2), "weight_hh_l0"),
            "weight_hh_l0 of .*RNN is parametrized",
        ),
    ],
)
def test_modules_that_are_refused(apply, module, message):
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TypeError, match=message):
        apply(module)
    for p, was in zip(module.parameters(), before, strict=True):
        assert torch.equal(p, was)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda: init.orthogonal_(bptt.RNN(2, 2), math.nan), "gain .*nan"),
        (lambda: init.identity_(bptt.RNN(2, 2), math.inf), "scale .*inf"),
        (lambda: init.chrono_(bptt.GRU(2, 2), 1), "2 steps or more.*got 1"),
        (lambda: init.chrono_(bptt.GRU(2, 2), math.nan), "got nan"),
        (lambda: init.chrono_(bptt.LSTM(2, 2, bias=False), 9), "bias=False"),
        (lambda: init.forget_bias_(bptt.LSTM(2, 2), math.nan), "value .*nan"),
        (lambda: init.forget_bias_(bptt.GRU(2, 2, bias=False)), "bias=False"),
        (lambda: init.spectral_radius_(bptt.RNN(2, 2), -1), "got -1"),
        (lambda: init.spectral_radius_(init.identity_(bptt.RNN(2, 2), 0)), "radius 0, which"),
    ],
)
def test_options_that_are_refused(apply, message):
    with pytest.raises(ConfigError, match=message):
        apply()


def test_all_recurrent_layers_inside_are_changed():
    both = nn.Sequential(bptt.LSTM(2, 4), nn.GRUCell(4, 4))
    init.forget_bias_(both, 2.0)
    assert total_biases(both[0], 1)[0].tolist() == [2.0] * 4
    assert total_biases(both[1], 1)[0].tolist() == [2.0] * 4


@pytest.mark.parametrize("cell", [c for c in CELLS if c.keeping], ids=lambda cell: cell.name)
def test_every_cell_keeps_its_state_where_it_says_so(cell):
    """The sign, seen in what the network does: weights of zero, a state, ten steps."""
    module = bptt.Recurrent(cell, 1, 40, dtype=torch.float64)
    for set_, share in (
        (lambda: init.forget_bias_(module, 3.0), torch.full((40,), 3.0).double().sigmoid()),
        (lambda: init.chrono_(module, 1000), None),
    ):
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
            set_()
            ones = tuple(torch.ones(1, 1, 40).double() for _ in range(cell.states))
            _, final = module(torch.zeros(10, 1, 1).double(), ones if cell.states > 1 else ones[0])
        kept = (final[1] if cell.states > 1 else final)[0, 0]
        if cell.name == "SLSTM":  # whose c is divided by exp(m)
            kept = kept * (final[3][0, 0] - 1).exp()
        if share is None:
            b = total_of(module, cell.gates_x, cell.keeping.block)
            share = (cell.keeping.sign * b).sigmoid()
            assert share.mean() > 0.9
            if cell.keeping.admits is not None:
                assert torch.equal(total_of(module, cell.gates_x, cell.keeping.admits), -b)
        torch.testing.assert_close(kept, share**10)


def total_of(module, gates, block):
    total = module.bias_ih_l0.detach()
    if module.bias_hh_l0.numel():  # a cell without a recurrent matrix has none
        total = total + module.bias_hh_l0.detach()
    return total.chunk(gates)[block]


def test_a_cell_of_ones_own_that_says_what_it_keeps():
    def equations(x, h, state, units):
        f = torch.sigmoid(x[0] + h[0])
        return ((1 - f) * torch.tanh(x[1] + h[1]) + f * state[0],)

    cell = Cell("OWN", 2, 2, equations, keeping=Keeping("keep", block=0))
    module = init.forget_bias_(bptt.Recurrent(cell, 2, 3, num_layers=2), 2.0)
    for n in (0, 1):
        total = getattr(module, f"bias_ih_l{n}") + getattr(module, f"bias_hh_l{n}")
        assert total[:3].tolist() == [2.0] * 3
    init.orthogonal_(module)
    for block in module.weight_hh_l1.detach().chunk(2):
        torch.testing.assert_close(block @ block.T, torch.eye(3), atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="got Recurrent of OWN"):
        init.identity_(module)


FUNCTIONS = {
    "chrono_": lambda m: init.chrono_(m, 10),
    "forget_bias_": init.forget_bias_,
    "ring_": init.ring_,
    "orthogonal_": init.orthogonal_,
    "identity_": init.identity_,
    "spectral_radius_": init.spectral_radius_,
}
EVERY = {
    **{cell.name: lambda cell=cell: bptt.Recurrent(cell, 2, 4) for cell in CELLS},
    "learnt leak": lambda: bptt.Recurrent(make_rate(None), 2, 4),
    "projected": lambda: bptt.Recurrent(TANH, 2, 4, proj_size=2),
    "projected rate": lambda: bptt.Recurrent(RATE, 2, 4, proj_size=2),
    "torch's": lambda: nn.GRUCell(2, 4),
}


@pytest.mark.parametrize("name", EVERY)
def test_what_a_refusal_names_is_not_refused(name):
    """Whoever does what a message says does not get another one; and what is done is done."""
    for function, apply in FUNCTIONS.items():
        message = refusal(lambda apply=apply: changed(EVERY[name](), apply))
        if message is None:
            assert changed(EVERY[name](), apply), function
            continue
        named = re.findall(r"\b(\w+_)\b", message.partition("; use ")[2])
        for other in named:
            assert changed(EVERY[name](), FUNCTIONS[other]), (function, other)
        assert named or "weights yourself" in message or "leak is fixed" in message


def refusal(call):
    try:
        call()
    except TypeError as e:
        return str(e)
    return None


def test_a_fixed_leak_is_made_longer_as_the_message_says():
    for cell in (make_rate(alpha=1 / 40), make_lif(beta=1 - 1 / 40)):
        assert 1 / cell.leak.alpha == pytest.approx(40)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_chrono_spreads_the_time_constants_of_a_rate_network(options):
    module = bptt.Recurrent(make_rate(None), 3, 400, **options)
    names = changed(module, lambda m: init.chrono_(m, 20))
    assert names == {k for k, _ in module.named_parameters() if "weight_units" in k}
    for w in of(module, "weight_units"):
        times = 1 / w.detach().double().sigmoid()
        assert times.min() >= 2 - 1e-4
        assert times.max() <= 20 + 1e-3
        assert abs(times.mean() - 11) < 5 * 5.2 / math.sqrt(400)
        assert abs(times.std() - 18 / math.sqrt(12)) < 0.8


def test_the_time_constants_are_those_of_the_measured_decay():
    """A current without input or recurrence: after n steps exp(-n / τ) is left, τ about 1/α."""
    module = bptt.Recurrent(make_rate(None), 1, 50, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    init.chrono_(module, 1000)
    steps, one = 100, torch.ones(1, 1, 50, dtype=torch.float64)
    _, (_, left) = module(torch.zeros(steps, 1, 1, dtype=torch.float64), (one, one))
    measured = -1 / torch.expm1(left[0, 0].detach().log() / steps)  # 1/α from what is left
    torch.testing.assert_close(measured, 1 / module.weight_units_l0[0].detach().sigmoid())
    assert (measured >= 2).all()
    assert (measured <= 1000).all()
    assert measured.mean() > 300


def test_chrono_is_for_rates_under_dales_law_too():
    module = dales_law(bptt.Recurrent(make_rate(None), 2, 10))
    W = module.weight_hh_l0.detach().clone()
    assert changed(module, lambda m: init.chrono_(m, 30)) == {"weight_units_l0"}
    assert torch.equal(module.weight_hh_l0, W)


def test_a_rate_network_of_the_identity_keeps_its_rates_and_their_gradient():
    """As a ReLU network does, whatever its leak is: a unit gives itself what its leak takes."""
    module = init.identity_(bptt.Recurrent(make_rate(0.3), 2, 3, dtype=torch.float64))
    start = torch.rand(1, 1, 3, dtype=torch.float64).requires_grad_()
    y, _ = module(torch.zeros(50, 1, 2, dtype=torch.float64), (start, start))
    y[-1].sum().backward()
    torch.testing.assert_close(y[-1], start.detach()[0])
    torch.testing.assert_close(start.grad, torch.ones_like(start))


def test_the_spectral_radius_of_a_rate_network():
    module = init.spectral_radius_(bptt.Recurrent(RATE, 2, 30), 1.5)
    found = torch.linalg.eigvals(module.weight_hh_l0.detach()).abs().max()
    assert abs(float(found) - 1.5) < 1e-5


def test_a_leak_of_ones_own():
    def equations(x, h, state, units):
        share = torch.sigmoid(units[1])
        return ((1 - share) * state[0] + units[0] * torch.tanh(x[0] + h[0]),)

    cell = Cell("OWN", 1, 1, equations, units=2, leak=Leak(weights=1, is_average=False))
    module = bptt.Recurrent(cell, 2, 30)
    before = module.weight_units_l0.detach().clone()
    init.chrono_(module, 50)
    assert torch.equal(module.weight_units_l0[0], before[0])
    assert not torch.equal(module.weight_units_l0[1], before[1])
    with pytest.raises(TypeError, match=r"use chrono_ or orthogonal_$"):
        init.identity_(module)


def test_the_cells_of_torchs_modules():
    assert init.cells_in(nn.RNNCell(2, 3, nonlinearity="relu")) == (BY_NAME["RNN_RELU"],)
    assert init.cells_in(nn.Sequential(nn.GRU(2, 3), nn.GRUCell(2, 3))) == (BY_NAME["GRU"],)
