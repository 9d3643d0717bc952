"""``bptt.Recurrent``: any cell with all that the modules of torch.nn's cells have."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import bptt
from bptt.cells import BY_NAME

CASES = {
    "plain": ({}, {}),
    "layers and directions": ({"num_layers": 2, "bidirectional": True}, {}),
    "batch first": ({"batch_first": True}, {}),
    "without biases": ({"bias": False}, {}),
    "a credit": ({"num_layers": 2}, {"credit": "truncated:3"}),
    "windows": ({"num_layers": 2}, {"credit": "truncated:every=2,reach=4"}),
    "resets and carry": ({}, {"resets": True, "carry": True}),
}


def pair(name, options):
    ours = {
        "RNN_TANH": lambda **o: bptt.RNN(3, 5, **o),
        "GRU": lambda **o: bptt.GRU(3, 5, **o),
        "LSTM": lambda **o: bptt.LSTM(3, 5, **o),
    }[name](**options)
    any_cell = bptt.Recurrent(BY_NAME[name], 3, 5, **options)
    any_cell.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(any_cell.state_dict())
    return ours, any_cell


def results(module, x, given, state=None):
    given = dict(given)
    if "resets" in given:
        torch.manual_seed(1)
        given["resets"], given["carry"] = torch.rand(7, 2) < 0.3, torch.rand(7, 2)
    y, final = module(x, state, **given)
    final = final if isinstance(final, tuple) else (final,)
    rows = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
    loss = rows.square().sum() + sum(s.sin().sum() for s in final)
    return [rows, *final, *torch.autograd.grad(loss, list(module.parameters()))]


@pytest.mark.parametrize("name", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("case", CASES)
def test_of_torchs_cells_it_is_the_module(name, case):
    options, given = CASES[case]
    ours, any_cell = pair(name, options)
    x = torch.randn(2, 7, 3) if options.get("batch_first") else torch.randn(7, 2, 3)
    for a, b in zip(results(ours, x, given), results(any_cell, x, given), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_packed_and_unbatched(name):
    ours, any_cell = pair(name, {})
    for x in (pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), torch.randn(6, 3)):
        for a, b in zip(results(ours, x, {}), results(any_cell, x, {}), strict=True):
            assert torch.equal(a, b)


def test_a_projection():
    ours, any_cell = pair("LSTM", {"proj_size": 2})
    x = torch.randn(7, 2, 3)
    for a, b in zip(results(ours, x, {}), results(any_cell, x, {}), strict=True):
        assert torch.equal(a, b)


def leaky(x, h, state, u):
    """Two states, weights of each unit, and more blocks of x than of h."""
    a = torch.tanh(x[0] + h[0] + u[0] * state[1])
    slow = torch.sigmoid(x[1]) * state[1] + (1 - torch.sigmoid(x[1])) * a
    return a * slow, slow


LEAKY = bptt.Cell("LEAKY", gates_x=2, gates_h=1, equations=leaky, states=2, units=1)


def network(**options):
    return bptt.Recurrent(LEAKY, 3, 5, dtype=torch.float64, **options)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_one_of_a_users_own_has_the_gradients_of_finite_differences(options):
    module = network(**options)
    weights = list(module.parameters())
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    h, c = (
        torch.randn(len(weights) // 5, 2, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    resets = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0]], dtype=torch.bool)

    def run(x, h, c, *weights):
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        y, state = torch.func.functional_call(module, named, (x, (h, c)), {"resets": resets})
        return (y, *state)

    assert torch.autograd.gradcheck(run, (x, h, c, *weights))
    assert torch.autograd.gradgradcheck(run, (x, h, c, *weights))


@pytest.mark.parametrize("credit", ["truncated:2", "truncated:every=2,reach=4"])
def test_its_credit_is_that_of_the_same_cell_step_by_step(credit):
    module = network()

    def piece(x, state):
        return module(x, state)

    x = torch.randn(7, 2, 3, dtype=torch.float64)
    zeros = tuple(torch.zeros(1, 2, 5, dtype=torch.float64) for _ in range(2))
    weights = list(module.parameters())
    found, expected = (
        torch.autograd.grad(bptt.unroll(f, x, zeros, credit=credit)[0].square().sum(), weights)
        for f in (module, piece)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_memory_and_streams():
    module, x = network(), torch.randn(12, 2, 3, dtype=torch.float64)
    weights = list(module.parameters())
    found = [
        torch.autograd.grad(bptt.unroll(module, x, memory=m)[0].square().sum(), weights)
        for m in ("store", "recompute:64MB,segment=3")
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    stream, parts = bptt.Stream(), []
    whole, _ = module(x)
    for part in x.split(4):
        y, stream = stream.advance(module, part, credit="truncated:4")
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_gradient_flow_of_it():
    ours, any_cell = pair("LSTM", {"num_layers": 2})
    ours.double(), any_cell.double()
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    expected, found = bptt.gradient_flow(ours, x).norms, bptt.gradient_flow(any_cell, x).norms
    known = found.isfinite()
    assert known.sum() >= 9 * 8 / 2
    torch.testing.assert_close(found[known], expected[known], rtol=1e-6, atol=1e-12)


def test_it_is_copied_saved_and_described():
    module = network(num_layers=2, bidirectional=True, dropout=0.5)
    again = copy.deepcopy(module)
    assert again.cell is module.cell
    assert repr(module) == ("Recurrent(LEAKY, 3, 5, num_layers=2, dropout=0.5, bidirectional=True)")
    _, of_torch = pair("GRU", {})
    x = torch.randn(4, 2, 3)
    assert torch.equal(pickle.loads(pickle.dumps(of_torch))(x)[0], of_torch(x)[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_layers": -2}, "num_layers must be at least 1, got -2"),
        ({"proj_size": -1}, "proj_size must be at least 0, got -1"),
        ({"dropout": 2}, "dropout must be from 0 to 1, got 2"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        bptt.Recurrent(LEAKY, **{"input_size": 3, "hidden_size": 5, **options})
