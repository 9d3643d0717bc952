"""The operators themselves, by torch's own checks, and whoever else writes operations down."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest
import torch
from recorded_cases import HOW, MODULES, WINDOWS
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bptt

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def operands(name, engine, *, credit=None, resets=False, packed=False, reverse=False, states=False):
    """What a call of an operator for one layer is given."""
    network = MODULES[name]()
    w = network._weights(0, False)
    sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    T, B = 4, 3
    x = torch.randn(9, 4) if packed else torch.randn(T, B, 4)
    state = [torch.randn(1, B, n) for n in network._state_sizes()]
    carry = blocks = None
    if credit:
        carry, blocks = torch.ops.bptt.plan(credit, T, B, "", reverse)
        carry, blocks = carry.to(x.dtype), None if reverse else blocks
    starts = torch.rand(T, B) < 0.3 if resets else None
    for t in (x, *state):
        t.requires_grad_()
    cell = network.cell.name if name != "own" else "LEAKY"
    crossing = carry, starts, blocks
    return (cell, engine, x, state, *w, sizes, reverse, *crossing, False, False, states, False)


@pytest.mark.parametrize("engine", ["native", "twin", ""])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"resets": True, "credit": "truncated:2"},
        {"credit": WINDOWS},
        {"packed": True},
        {"states": True, "credit": WINDOWS},
        {"packed": True, "reverse": True, "resets": True},
    ],
)
@pytest.mark.parametrize("name", ["GRU", "LSTM", "MGU", "projection"])
def test_torchs_checks_of_a_sequence(name, how, engine):
    given = operands(name, engine, **how)
    torch.library.opcheck(torch.ops.bptt.sequence.default, given, test_utils=CHECKS)


def test_torchs_checks_of_a_plan():
    given = ("truncated:every=1,reach=2", 4, 3, "", False)
    torch.library.opcheck(torch.ops.bptt.plan.default, given, test_utils=CHECKS[:-1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torchs_checks_of_the_loss_of_a_readout(reduction):
    hidden, weight, bias = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7)
    for t in (hidden, weight, bias):
        t.requires_grad_()
    needed = [reduction != "none"] * 3
    given = (hidden, weight, bias, torch.randint(7, (6,)), None, -100, reduction, False, needed)
    torch.library.opcheck(torch.ops.bptt.linear_cross_entropy.default, given, test_utils=CHECKS)


@pytest.mark.parametrize(
    "how", [h for h in HOW if not {"stacked", "states", "zoneout"} & {*re.findall(r"\w+", h)}]
)
@pytest.mark.parametrize("name", MODULES)
def test_make_fx_writes_down_one_operation_for_a_layer(name, how):
    options, call = HOW[how]
    network = MODULES[name](**{**options, "dropout": 0.0})
    call = {k: v for k, v in call.items() if k == "credit"}
    if call.get("credit") is not None and not isinstance(call["credit"], str):
        call = {"credit": "truncated:3"}
    x, other = torch.randn(6, 3, 4), torch.randn(9, 2, 4)
    with torch.no_grad():
        graph = make_fx(
            lambda z: network(z, **call)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True
        )(x)
        torch.testing.assert_close(graph(other), network(other, **call)[0], rtol=0, atol=0)
    names = [str(n.target) for n in graph.graph.nodes]
    layers = network.num_layers * (1 + network.bidirectional)
    assert names.count("bptt.sequence.default") == layers


@pytest.mark.parametrize("name", MODULES)
def test_make_fx_of_a_gradient(name):
    network, x, other = MODULES[name](), torch.randn(6, 3, 4), torch.randn(6, 3, 4)

    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(network(z)[0].square().sum(), [z, *network.parameters()])

    graph = make_fx(gradient)(x)
    torch.testing.assert_close(graph(other), gradient(other), rtol=0, atol=0)
    assert sum("sequence_backward" in str(n.target) for n in graph.graph.nodes) == 1


def test_make_fx_of_a_second_derivative():
    network, x, other = bptt.GRU(4, 5), torch.randn(4, 2, 4), torch.randn(4, 2, 4)

    def second(z):
        z = z.detach().requires_grad_()
        (d,) = torch.autograd.grad(network(z)[0].square().sum(), z, create_graph=True)
        return torch.autograd.grad(d.square().sum(), z)[0]

    torch.testing.assert_close(make_fx(second)(x)(other), second(other))


@pytest.mark.parametrize("name", MODULES)
def test_fake_tensors_have_the_right_shapes_and_strides(name):
    def run():
        network = MODULES[name](num_layers=2, bidirectional=True)
        y, final = network(torch.randn(6, 3, 4), credit="truncated:2")
        y.sum().backward()
        return network, y, final

    _, expected, final = run()
    with FakeTensorMode():
        fake, y, last = run()
    last, final = (s if isinstance(s, tuple) else (s,) for s in (last, final))
    for a, b in zip((y, *last), (expected, *final), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    assert all(p.grad.shape == p.shape for p in fake.parameters())


class Outputs(torch.nn.Module):
    def __init__(self, recurrent, **call):
        super().__init__()
        self.recurrent, self.call = recurrent, call

    def forward(self, x, state=None, resets=None):
        how = dict(self.call) if resets is None else {**self.call, "resets": resets}
        return self.recurrent(x, state, **how)


T, B = torch.export.Dim("T", min=2, max=5000), torch.export.Dim("B", min=1, max=5000)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_export_with_any_length_batch_and_state(name, strict, tmp_path):
    network = Outputs(MODULES[name](num_layers=2, bidirectional=True), credit="truncated:3")
    sizes = network.recurrent._state_sizes()

    def given(t, b):
        state = tuple(torch.randn(4, b, n) for n in sizes)
        return torch.randn(t, b, 4), state[0] if len(state) == 1 else state, torch.rand(t, b) < 0.3

    states = {1: B} if len(sizes) == 1 else ({1: B},) * len(sizes)
    program = torch.export.export(
        network, given(6, 3), dynamic_shapes=({0: T, 1: B}, states, {0: T, 1: B}), strict=strict
    )
    if name != "own":  # a file knows no cell of one's own
        torch.export.save(program, tmp_path / "network.pt2")
        program = torch.export.load(tmp_path / "network.pt2")
    assert len(program.graph.nodes) < 80  # and not one for each step
    for shape in ((6, 3), (40, 1), (2, 7)):
        x = given(*shape)
        torch.testing.assert_close(program.module()(*x), network(*x), rtol=0, atol=0)


def test_an_exported_network_can_be_trained():
    network, x = Outputs(bptt.LSTM(4, 5)), torch.randn(6, 3, 4)
    exported = torch.export.export(network, (x,)).module()
    found, expected = (
        torch.autograd.grad(n(x)[0].square().sum(), list(n.parameters()))
        for n in (exported, network)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_jit_trace_keeps_length_and_batch_open(name):
    network = MODULES[name](num_layers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        traced = torch.jit.trace(network, torch.randn(6, 3, 4), check_trace=False)
    for shape in ((6, 3), (9, 1), (2, 7)):
        x = torch.randn(*shape, 4)
        torch.testing.assert_close(traced(x), network(x))
    assert len(list(traced.graph.nodes())) < 100


def test_an_exported_loss_has_gradients_that_were_not_needed_when_it_was_recorded():
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(7, 5))

        def forward(self, hidden, targets):
            return bptt.losses.linear_cross_entropy(hidden, self.weight, None, targets)

    loss, hidden, targets = Loss(), torch.randn(6, 5), torch.randint(7, (6,))
    exported = torch.export.export(loss, (hidden, targets)).module()
    given = hidden.requires_grad_()
    found, expected = (
        torch.autograd.grad(run(given, targets), [given, *run.parameters()])
        for run in (exported, loss)
    )
    torch.testing.assert_close(found, expected)


def test_a_saved_program_runs_in_another_process(tmp_path):
    network, x = bptt.GRU(4, 5), torch.randn(6, 3, 4)
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "network.pt2")
    torch.save((x, network(x)[0].detach()), tmp_path / "values.pt")
    script = (
        "import sys, torch\nfrom bptt import GRU\n"
        "x, y = torch.load(sys.argv[2])\n"
        "found = torch.export.load(sys.argv[1]).module()(x)[0]\n"
        "torch.testing.assert_close(found, y)"
    )
    files = (tmp_path / "network.pt2", tmp_path / "values.pt")
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_jit_trace_with_a_credit_refuses_another_length():
    class Credited(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = bptt.GRU(4, 5)

        def forward(self, x):
            return self.recurrent(x, credit="truncated:2")[0]

    network = Credited()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        traced = torch.jit.trace(network, torch.randn(6, 3, 4), check_trace=False)
    x = torch.randn(6, 3, 4)
    torch.testing.assert_close(traced(x), network(x))
    for shape in ((9, 3), (6, 2)):
        with pytest.raises(RuntimeError):
            traced(torch.randn(*shape, 4))
