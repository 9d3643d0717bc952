"""``return_states``: the states after each step, and the gradients that flow back through them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import bptt
from bptt.cells import CELLS, MGU, PEEPHOLE_LSTM

MODULES = {
    "RNN": lambda **o: bptt.RNN(3, 4, **o),
    "GRU": lambda **o: bptt.GRU(3, 4, **o),
    "LSTM": lambda **o: bptt.LSTM(3, 4, **o),
    "projection": lambda **o: bptt.LSTM(3, 4, proj_size=2, **o),
    "MGU": lambda **o: bptt.Recurrent(MGU, 3, 4, **o),
    "peepholes": lambda **o: bptt.Recurrent(PEEPHOLE_LSTM, 3, 4, **o),
}
EACH = pytest.mark.parametrize("name", MODULES)
double = {"dtype": torch.float64}


@pytest.fixture(params=["twin", "native"], autouse=True)
def _kernels(request):
    with bptt.kernels.use(request.param):
        yield


def parts(tree):
    """All tensors in the results of a call, one beside the other."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, PackedSequence):
        return [tree.data]
    return [t for part in tree for t in parts(part)]


def by_steps(network, x, **how):
    """The states of the last layer, from calls of one step each."""
    state, found = None, []
    for n in range(len(x)):
        here = {k: v[n : n + 1] if k == "resets" else v for k, v in how.items()}
        _, state = network(x[n : n + 1], state, **here)
        found.append([s[-1] for s in (state if isinstance(state, tuple) else (state,))])
    return [torch.stack(s) for s in zip(*found, strict=True)]


@EACH
def test_they_are_the_states_of_each_step(name):
    network, x = MODULES[name](num_layers=2, **double), torch.randn(6, 2, 3, **double)
    y, final, states = network(x, return_states=True)
    expected = network(x)
    torch.testing.assert_close((y, final), expected, rtol=0, atol=0)
    assert len(states) == 2
    assert torch.equal(states[1][0], y)
    torch.testing.assert_close(list(states[1]), by_steps(network, x))
    finals = final if isinstance(final, tuple) else (final,)
    for layer, of_layer in enumerate(states):
        for s, last in zip(of_layer, finals, strict=True):
            assert torch.equal(s[-1], last[layer])


@EACH
@pytest.mark.parametrize(
    "how", [{}, {"credit": "truncated:2"}, {"credit": "truncated:every=1,reach=3"}, {"resets": 1}]
)
def test_gradients_flow_back_through_them(name, how):
    """What is asked of a loss on them: the sum over cut or weighted paths, by stepwise calls."""
    network, x = MODULES[name](**double), torch.randn(6, 2, 3, requires_grad=True, **double)
    how = dict(how)
    if "resets" in how:
        how["resets"] = torch.rand(6, 2) < 0.4
    _, _, states = network(x, return_states=True, **how)
    w = [torch.randn_like(s) for s in states[0]]
    loss = sum((a * b).sum() for a, b in zip(states[0], w, strict=True))
    wanted = [x, *network.parameters()]
    found = torch.autograd.grad(loss, wanted)
    expected = [torch.zeros_like(t) for t in wanted]
    plan = bptt.credit.parse(how.pop("credit", "full")).plan(6)
    edges = (
        plan.since()
        if plan.blocks
        else [max([0, *[j for j in range(1, t + 1) if plan.carry[j] == 0]]) for t in range(6)]
    )
    for t in range(6):  # the loss of a step, through the steps that it is credited to
        first = int(edges[t])
        with torch.no_grad():
            before = {k: v[:first] for k, v in how.items()}
            state = network(x[:first], **before)[1] if first else None
        rest = {k: v[first : t + 1] for k, v in how.items()}
        here = by_steps_from(network, x[first : t + 1], state, rest)
        part = sum((s * b[t]).sum() for s, b in zip(here, w, strict=True))
        for total, d in zip(expected, torch.autograd.grad(part, wanted), strict=True):
            total += d
    torch.testing.assert_close(list(found), expected)


def by_steps_from(network, x, state, how):
    _, state = network(x, state, **how)
    return [s[-1] for s in (state if isinstance(state, tuple) else (state,))]


@EACH
def test_packed_reverse_and_batch_first_are_laid_out_like_the_output(name):
    sizes = (2, 5, 1, 3)
    packed = pack_sequence([torch.randn(n, 3) for n in sizes], enforce_sorted=False)
    network = MODULES[name](num_layers=2, bidirectional=True)
    y, _, states = network(packed, return_states=True)
    assert torch.equal(states[1][0].data, y.data)
    for of_layer in states:
        for s in of_layer:
            assert torch.equal(s.batch_sizes, y.batch_sizes)
    padded, _ = pad_packed_sequence(packed)
    for n, size in enumerate(sizes):
        _, _, alone = network(padded[:size, n], return_states=True)
        for of_layer, of_one in zip(states, alone, strict=True):
            for s, one in zip(of_layer, of_one, strict=True):
                torch.testing.assert_close(pad_packed_sequence(s)[0][:size, n], one)
    first = MODULES[name](batch_first=True)
    y, _, states = first(torch.randn(5, 7, 3), return_states=True)
    assert {s.shape[:2] for s in states[0]} == {(5, 7)}


@EACH
def test_a_second_derivative_flows_through_them(name):
    network, x = MODULES[name](**double), torch.randn(3, 2, 3, requires_grad=True, **double)

    def run(x):
        return tuple(network(x, return_states=True)[2][0])

    assert torch.autograd.gradgradcheck(run, x)


def test_they_keep_their_values_when_the_output_is_changed_in_place():
    network, x = bptt.LSTM(3, 4), torch.randn(5, 2, 3)
    _, _, ((_, c),) = network(x, return_states=True)
    before = c.clone()
    (c * c).sum().backward()
    with torch.no_grad():
        network(x, return_states=True)
    assert torch.equal(c, before)


def test_every_cell_of_bptt_is_among_them():
    assert {cell.kind for cell in CELLS} == {
        "RNN",
        "GRU",
        "LSTM",
        "MGU",
        "MIN_GRU",
        "MIN_LSTM",
        "LRU",
        "PEEPHOLE_LSTM",
        *("CFC", "INDRNN", "LIF", "RATE", "SLSTM"),
    }
