"""Steps, their Jacobians and their norms, beside torch.func.jacrev and what is known exactly."""

from __future__ import annotations

import pytest
import torch
from flow.foreign import Linear, Map, Named, OnlyBackward
from problems import OF_TORCH, Problem
from torch import nn

import bptt
from bptt._src.flow import jacobians
from bptt._src.flow.jacobians import bound, jacobian_norms, largest_singular_values
from bptt._src.flow.trajectory import follow
from bptt.cells import BY_NAME, Weights

MODES = OF_TORCH
PROBLEMS = [Problem(mode) for mode in MODES] + [
    Problem("LSTM", projection=2),
    Problem("GRU", layers=2),
    Problem("LSTM", layers=2),
]


def initial(problem):
    """The initial state as the module takes it, and as [B, n] for each layer."""
    states = [tuple(s.detach() for s in state) for state in problem.states]
    stacked = tuple(torch.stack(s) for s in zip(*states, strict=True))
    return stacked[0] if len(stacked) == 1 else stacked, [torch.cat(s, dim=1) for s in states]


def by_jacrev(problem):
    """∂state_t/∂state_{t-1} of each layer, step and sequence, from the cells: [L][T, B, n, n]."""
    x, cell = problem.x.detach(), problem.cell
    _, rows = initial(problem)
    found = []
    for layer, w in enumerate(problem.weights):
        sizes = [w.hh.shape[1], problem.hidden][: cell.states]

        def one(h, x_t, w=w, sizes=sizes):
            after = cell.step(x_t[None], tuple(h[None].split(sizes, dim=1)), w)
            return torch.cat(after, dim=1)[0]

        h, steps, outputs = rows[layer], [], []
        for x_t in x:
            jacobian = [torch.func.jacrev(one)(a, b) for a, b in zip(h, x_t, strict=True)]
            steps.append(torch.stack(jacobian).detach())
            after = [one(a, b) for a, b in zip(h, x_t, strict=True)]
            h = torch.stack(after).detach()
            outputs.append(h[:, : sizes[0]])
        found.append(torch.stack(steps))
        x = torch.stack(outputs)
    return found


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_jacobians_and_products_are_those_of_jacrev(problem):
    state, _ = initial(problem)
    layers = follow(problem.module(), problem.x, state)
    assert [layer.layer for layer in layers] == list(range(problem.layers))
    for layer, exact in zip(layers, by_jacrev(problem), strict=True):
        (piece,) = layer.pieces()
        exact = exact.flatten(0, 1)
        assert exact.abs().max() > 0.1
        close = {"atol": 1e-12, "rtol": 1e-10}
        torch.testing.assert_close(piece.jacobian, exact, **close)
        v = torch.randn(len(exact), exact.shape[2], 3, dtype=torch.float64)
        torch.testing.assert_close(piece.push(v), exact @ v, **close)
        u = v[..., 0]
        torch.testing.assert_close(piece.pull(u), (u[:, None] @ exact)[:, 0], **close)
        norms = torch.linalg.matrix_norm(exact, 2).view(problem.steps, problem.batch).T
        torch.testing.assert_close(jacobian_norms(layer), norms, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched", "no state"])
def test_modules_of_torch_are_followed_like_ours(kind, layout):
    options = {"batch_first": layout == "batch first", "num_layers": 2, "dtype": torch.float64}
    theirs = getattr(nn, kind)(2, 3, **options)
    x = torch.randn(5, 2, dtype=torch.float64) if layout == "unbatched" else None
    x = torch.randn(5, 4, 2, dtype=torch.float64) if x is None else x
    state = None
    if layout != "no state":
        shape = {"unbatched": (2, 3), "batch first": (2, 5, 3)}.get(layout, (2, 4, 3))
        state = torch.randn(2, *shape, dtype=torch.float64)
        state = tuple(state) if kind == "LSTM" else state[0]
    y, _ = theirs(x, state)
    layers = follow(theirs, x, state)
    found = layers[-1].outputs
    found = {"unbatched": found[:, 0], "batch first": found.transpose(0, 1)}.get(layout, found)
    torch.testing.assert_close(found, y.detach())
    assert not layers[0].before.requires_grad


def test_a_foreign_step():
    module, x = Named(), torch.randn(5, 3, 2, dtype=torch.float64)
    state = {
        "slow": torch.randn(3, 4, dtype=torch.float64),
        "count": torch.tensor(1),
        "phase": torch.arange(3),
        "fast": torch.randn(3, 4, dtype=torch.float64),
    }
    (layer,) = follow(module, x, state)
    norms = jacobian_norms(layer)
    names = ("fast", "slow")  # the state's numbers, by sorted keys
    for t in range(5):
        for b in range(3):
            now = {k: v[b : b + 1] if v.dim() else v for k, v in state.items()}

            def one(values, t=t, b=b, now=now):
                _, after = module(x[t : t + 1, b : b + 1], {**now, **values})
                return {k: after[k] for k in names}

            blocks = torch.func.jacrev(one)({k: now[k] for k in names})
            rows = [torch.cat([blocks[i][j].reshape(4, 4) for j in names], 1) for i in names]
            exact = torch.cat(rows).detach()
            piece = layer.at(t)
            torch.testing.assert_close(piece.jacobian[b], exact)
            torch.testing.assert_close(norms[b, t], torch.linalg.matrix_norm(exact, 2))
        v = torch.randn(3, 8, 2, dtype=torch.float64)
        torch.testing.assert_close(piece.push(v), piece.jacobian @ v)
        with torch.no_grad():
            _, state = module(x[t : t + 1], state)


def test_a_foreign_step_that_begins_by_itself_has_no_first_jacobian():
    (layer,) = follow(Named(), torch.randn(4, 3, 2, dtype=torch.float64))
    norms = jacobian_norms(layer)
    assert norms.shape == (3, 4)
    assert norms[:, 0].isnan().all()
    assert norms[:, 1:].isfinite().all()


def test_a_step_without_forward_mode_is_looked_at_through_its_whole_jacobian():
    matrix = torch.randn(4, 4, dtype=torch.float64)
    layers = [
        follow(Map(lambda h, f=f: f(h @ matrix.T)), torch.zeros(6, 2, 1), torch.ones(2, 4).double())
        for f in (OnlyBackward.apply, torch.tanh)
    ]
    v = torch.randn(2, 4, 3, dtype=torch.float64)
    ours, theirs = (layer.at(2).push(v) for (layer,) in layers)
    torch.testing.assert_close(ours, theirs)


def test_an_error_of_the_modules_own_is_not_hidden():
    def broken(h):
        if h.requires_grad or torch.autograd.forward_ad._current_level >= 0:
            raise RuntimeError("this module is broken")
        return h

    with pytest.raises(RuntimeError, match="this module is broken"):
        follow(Map(broken), torch.zeros(3, 2, 1), torch.ones(2, 4))


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "RNN_SIGMOID"])
def test_no_norm_exceeds_the_bound_and_the_bound_is_reached(mode):
    """Reached where φ' is at its supremum everywhere: at a = 0, or where every ReLU is active."""
    rnn = bptt.RNN(2, 6, nonlinearity=mode[4:].lower(), dtype=torch.float64)
    (layer,) = follow(rnn, torch.randn(30, 3, 2, dtype=torch.float64))
    assert (jacobian_norms(layer) <= bound(layer) * (1 + 1e-12)).all()
    exact = torch.linalg.matrix_norm(rnn.weight_hh_l0.detach(), 2)
    torch.testing.assert_close(bound(layer), float(exact) * BY_NAME[mode].phi.slope)
    with torch.no_grad():
        for p in (rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.bias_hh_l0):
            p.zero_()
        rnn.bias_ih_l0 += 0.1 if mode == "RNN_RELU" else 0
    zero = torch.zeros(1, 3, 6, dtype=torch.float64)
    (layer,) = follow(rnn, torch.zeros(1, 3, 2, dtype=torch.float64), zero)
    torch.testing.assert_close(jacobian_norms(layer), torch.full((3, 1), bound(layer)).double())


def test_cells_with_gates_and_foreign_steps_have_no_bound():
    assert bound(follow(bptt.GRU(2, 3), torch.randn(2, 1, 2))[0]) is None
    assert bound(follow(Named(), torch.randn(2, 1, 2).double())[0]) is None


def test_the_largest_singular_value_of_a_large_jacobian():
    """More numbers than steps of the bidiagonalization: below the exact value, by little."""
    for name, size in (("RNN", 150), ("LSTM", 80)):
        module = getattr(bptt, name)(4, size, dtype=torch.float64)
        (layer,) = follow(module, torch.randn(3, 2, 4, dtype=torch.float64))
        (piece,) = layer.pieces()
        exact = torch.linalg.matrix_norm(piece.jacobian, 2)
        found = largest_singular_values(piece)
        assert (found <= exact * (1 + 1e-10)).all()
        assert (found >= exact * (1 - 2e-3)).all()
        assert (largest_singular_values(piece, 3) < exact * (1 - 2e-3)).all()


@pytest.mark.parametrize("kind", ["ours", "foreign"])
@pytest.mark.parametrize("each", [False, True])
def test_a_sequence_that_starts_anew(kind, each):
    """The states are those of the pieces run by themselves."""
    module = bptt.LSTM(2, 3, dtype=torch.float64) if kind == "ours" else Named()
    x = torch.randn(7, 2, 2, dtype=torch.float64)
    resets = torch.zeros(7, 2, dtype=torch.bool)
    resets[4] = True
    _, state = module(x[:1])
    start = None if kind == "ours" else state
    if kind == "foreign":  # from zero, but for the whole numbers, which go on
        start = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in state.items()}
    (whole,) = follow(module, x, start, resets=resets if each else resets[:, 0])
    (first,) = follow(module, x[:4], start)
    again = None
    if kind == "foreign":
        _, state = module(x[:4], start)
        again = {k: v * 0 if v.is_floating_point() else v for k, v in state.items()}
    (second,) = follow(module, x[4:], again)
    assert not whole.before[4].any()
    torch.testing.assert_close(whole.after, torch.cat([first.after, second.after]))
    if kind == "ours":
        resets[4, 0] = False
        (other,) = follow(module, x, start, resets=resets)
        assert other.before[4, 0].any()
        assert not other.before[4, 1].any()


def test_the_batch_may_come_first_in_a_foreign_module_too():
    cell = bptt.Stepwise(nn.GRUCell(2, 3, dtype=torch.float64))
    x, h = torch.randn(4, 2, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)

    def turned(x, state):
        y, state = cell(x.transpose(0, 1), state)
        return y.transpose(0, 1), state

    (a,) = follow(cell, x, h)
    (b,) = follow(turned, x.transpose(0, 1), h, state_batch_dim=0, batch_first=True)
    assert torch.equal(a.after, b.after)
    v = torch.randn(2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(b.at(1).push(v), a.at(1).push(v))


def test_singular_values_that_are_all_the_same_or_zero():
    """Where a few products already tell everything, what is left is rounding and must not count."""
    rnn = bptt.init.identity_(bptt.RNN(4, 100, nonlinearity="relu"))
    (layer,) = follow(rnn, torch.randn(20, 3, 4))
    assert 0.1 < float((layer.after > 0).double().mean()) < 0.9
    torch.testing.assert_close(jacobian_norms(layer), torch.ones(3, 20).double(), atol=1e-5, rtol=0)
    (layer,) = follow(bptt.init.orthogonal_(bptt.RNN(4, 100)), torch.zeros(5, 1, 4))
    assert (jacobian_norms(layer) <= 1 + 1e-5).all()


def test_a_jacobian_that_is_not_finite_has_no_norm():
    rnn = bptt.RNN(1, 30, nonlinearity="relu")
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(1e12)
    (layer,) = follow(rnn, torch.ones(6, 2, 1))
    norms = jacobian_norms(layer)
    assert norms[:, 0].isfinite().all()
    assert norms[:, -1].isnan().all()
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(torch.inf)
    assert torch.tensor(jacobians.spectral_radius(layer.weights)).isnan()
    assert torch.tensor(jacobians.weight_norm(layer.weights)).isnan()


def test_a_step_that_forgets_everything_has_norm_zero():
    rnn = bptt.RNN(1, 3, nonlinearity="relu")
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(-100)
    (layer,) = follow(rnn, torch.ones(4, 1, 1))
    assert not jacobian_norms(layer).any()


def test_pieces_give_the_same_whatever_their_size(monkeypatch):
    module, x = bptt.LSTM(2, 5), torch.randn(9, 2, 2)
    (layer,) = follow(module, x)
    whole = jacobian_norms(layer)
    assert len(list(layer.pieces())) == 1
    monkeypatch.setattr("bptt._src.flow.trajectory.MOST_NUMBERS", 45)
    assert len(list(layer.pieces())) == 5  # 2 steps of 2 sequences of 10 numbers
    torch.testing.assert_close(jacobian_norms(layer), whole)


def test_weights():
    w = torch.tensor([[0.0, 2.0], [-0.5, 0.0]])
    layer = Weights(ih=torch.zeros(2, 1), hh=w)
    assert jacobians.weight_norm(layer) == pytest.approx(2.0)
    assert jacobians.spectral_radius(layer) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (bptt.LSTM(2, 3, bidirectional=True), torch.zeros(3, 1, 2), "bidirectional"),
        (Linear(torch.eye(3)), torch.zeros(3, 2, 1), "state_batch_dim"),
        (
            bptt.RNN(2, 3),
            nn.utils.rnn.pack_sequence([torch.zeros(3, 2)]),
            "got a PackedSequence",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(module, inputs, message):
    with pytest.raises(ValueError, match=message):
        follow(module, inputs, torch.zeros(3, 3) if isinstance(module, Linear) else None)
