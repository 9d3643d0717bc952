"""``bptt.Recurrent``: any cell with all that the modules of torch.nn's cells have."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from problems import SPIKING
from torch.nn.utils.rnn import pack_sequence

import bptt
from bptt.cells import BY_NAME, CELLS, Keeping, Leak, Nonlinearity
from bptt.errors import KernelError

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

    assert torch.autograd.gradcheck(run, (x, h, c, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, h, c, *weights), fast_mode=True)


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


LEARNT = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("equations", "states", "match"),
    [
        (lambda x, h, s, u: (torch.softmax(x[0] + h[0], -1),), 1, "mix hidden units"),
        (lambda x, h, s, u: (x[0] + u[0].cumsum(0),), 1, "mix hidden units"),
        (lambda x, h, s, u: (x[0] - h[0].mean(0),), 1, "mix the sequences"),
        (lambda x, h, s, u: (x[0] + torch.randn_like(h[0]),), 1, "the second time"),
        (lambda x, h, s, u: (x[0] * LEARNT + h[0],), 1, "requires gradients"),
        (lambda x, h, s, u: (x[0],), 2, r"must return 2 tensors .* got \[\(2, 3\)\]"),
        (lambda x, h, s, u: (x[0].sum(),), 1, r"must return 1 tensor .* got \[\(\)\]"),
    ],
)
def test_equations_whose_gradients_would_be_wrong(equations, states, match):
    cell = bptt.Cell("WRONG", 1, 1, equations, states=states, units=1)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=match):
        bptt.Recurrent(cell, 3, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "mean",
    [
        lambda before, after, p: (after[1], after[1]),
        lambda before, after, p: (p * before[0] + after[0], after[1]),
        lambda before, after, p: after[:1],
        lambda before, after, p: (after[0], after[1].sum()),
        lambda before, after, p: None,
    ],
)
def test_a_mean_of_equal_states_that_is_another_one(mean):
    cell = dataclasses.replace(bptt.cells.make_rate(phi=torch.tanh), mean=mean)
    with pytest.raises(ValueError, match=r"the mean of RATE .* the 2 tied tensors"):
        bptt.Recurrent(cell, 3, 3)


@pytest.mark.parametrize("cell", bptt.cells.CELLS, ids=lambda cell: cell.name)
def test_the_equations_of_ours_are_elementwise(cell):
    bptt.Recurrent(cell, 3, 5)


@pytest.mark.parametrize(
    "sizes", [{"gates_x": 0}, {"gates_h": -1}, {"states": 0}, {"units": -1}], ids=str
)
def test_a_cell_of_impossible_sizes(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        bptt.Cell("NONE", **{"gates_x": 1, "gates_h": 1, "equations": leaky, **sizes})


@pytest.fixture
def native():
    if bptt.kernels.backend().name != "native":
        pytest.skip("no native kernels here")


def test_another_cell_of_the_same_name_is_not_taken_for_the_librarys(native):
    other = bptt.Cell("GRU", 3, 3, lambda x, h, s, u: (x[0] + h[1] + 0 * x[2],))
    module, x = bptt.Recurrent(other, 3, 5), torch.randn(1, 2, 3)
    of_x = x[0] @ module.weight_ih_l0.T + module.bias_ih_l0
    expected = of_x[:, :5] + module.bias_hh_l0[5:10]
    torch.testing.assert_close(module(x)[0][0], expected)


@pytest.mark.parametrize(("name", "states"), [("NO_SUCH", 1), ("GRU", 2)])
def test_a_cell_that_is_said_to_be_native_and_is_not(native, name, states):
    cell = bptt.Cell(name, 3, 3, lambda x, h, s, u: s, states=states, is_native=True)
    with pytest.raises(KernelError, match="leave is_native out"):
        bptt.Recurrent(cell, 3, 5)(torch.randn(2, 2, 3))


@pytest.mark.parametrize("kind", ["meta", "freed", "shape", "negative", "strided"])
def test_weights_of_the_units_are_guarded_as_the_others(native, kind):
    module = bptt.Recurrent(bptt.cells.PEEPHOLE_LSTM, 3, 16)
    x, units = torch.randn(4, 2, 3), module.weight_units_l0
    expected = module(x)[0]
    if kind in ("negative", "strided"):
        values = units.detach()
        wide = torch.cat([values, values], 1)[:, :16] if kind == "strided" else None
        found = torch.func.functional_call(
            module, {"weight_units_l0": torch._neg_view(-values) if wide is None else wide}, (x,)
        )[0]
        torch.testing.assert_close(found, expected)
        return
    if kind == "freed":
        units.untyped_storage().resize_(0)
    else:
        values = units.to("meta") if kind == "meta" else torch.ones(3, 8)
        module.weight_units_l0 = torch.nn.Parameter(values)
    with pytest.raises(RuntimeError, match=r"units|freed"):
        module(x)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_cell_knows_a_projection_or_refuses_it(cell):
    one = torch.ones(1, 4, requires_grad=True)
    blocks = [(torch.ones(1, 4),) * n for n in (cell.gates_x, cell.gates_h)]
    others = (torch.ones(1, 4),) * (cell.states - 1)
    results = cell.equations(*blocks, (one, *others), (torch.ones(4),) * cell.units)
    if any(r.requires_grad for r in results) or cell.name in SPIKING:  # whose reset is detached
        with pytest.raises(ValueError, match=r"read h itself.*leave proj_size out"):
            bptt.Recurrent(cell, 3, 4, proj_size=2)
        return
    module = bptt.Recurrent(cell, 3, 4, num_layers=2, proj_size=2, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(5, 2) < 0.3
    assert module(x)[0].shape == (5, 2, 2)
    assert torch.autograd.gradcheck(lambda x: module(x, resets=resets)[0], x)


@pytest.mark.parametrize(
    "equations",
    [
        lambda x, h, s, u: (torch.tanh(x[0] + h[0]) * torch.ones_like(s[0]),),
        lambda x, h, s, u: (torch.tanh(x[0] + h[0]) + torch.relu(s[0] - 8),),
    ],
    ids=["its shape", "where it is large"],
)
def test_equations_that_read_h_in_any_way_know_no_projection(equations):
    with pytest.raises(ValueError, match="read h itself"):
        bptt.Recurrent(bptt.Cell("MINE", 1, 1, equations), 3, 4, proj_size=2)


@pytest.mark.parametrize(
    ("declared", "match"),
    [
        ({"keeping": Keeping("f", 9)}, "names block 9"),
        ({"keeping": Keeping("f", -1)}, "names block -1"),
        ({"keeping": Keeping("f", 0, admits=2)}, "names block 2"),
        ({"keeping": Keeping("f", 0, 0)}, "sign 1 or -1"),
        ({"phi": Nonlinearity("tanh", 1.0), "states": 2}, "one tensor in its state"),
        ({"leak": Leak()}, "leak names vector 0 of weight_units, and the cell has units=0"),
        ({"leak": Leak(weights=2), "units": 2}, "leak names vector 2 "),
        ({"leak": Leak(alpha=0.0)}, "above 0 and at most 1, got Leak"),
        ({"mean": lambda before, after, p: before}, "mean averages the tensors that are tied"),
    ],
)
def test_what_a_cell_declares_fits_it(declared, match):
    with pytest.raises(ValueError, match=match):
        bptt.Cell("MINE", 1, 1, lambda x, h, s, u: s, **declared)


@pytest.mark.parametrize("gates", [lambda x, h, s, u: (x[0],), lambda *a: {"f": torch.ones(())}])
def test_gates_are_tensors_by_name(gates):
    cell = bptt.Cell("MINE", 1, 1, lambda x, h, s, u: (torch.tanh(x[0] + h[0]),), gates=gates)
    with pytest.raises(ValueError, match="gates of MINE must return a dictionary"):
        bptt.Recurrent(cell, 3, 4)


def test_a_gate_that_keeps_without_weights_of_h_gets_its_one_bias():
    def equations(x, h, s, u):
        f = torch.sigmoid(x[0])
        return (f * s[0] + (1 - f) * x[1],)

    module = bptt.Recurrent(bptt.Cell("SRU", 2, 0, equations, keeping=Keeping("forget", 0)), 3, 4)
    before = module.bias_ih_l0.detach().clone()
    bptt.init.forget_bias_(module, 2.0)
    assert (module.bias_ih_l0[:4] == 2).all()
    assert torch.equal(module.bias_ih_l0[4:], before[4:])
    assert bptt.init.chrono_(module, longest=20) is module
