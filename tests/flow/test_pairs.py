"""‖∂L_t/∂h_s‖ of all pairs against T separate backward passes over the cells, one for each loss."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from paths import using
from problems import Problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bptt
from bptt._src.flow import dense, layers, stepwise, windows
from bptt._src.flow.network import as_ours
from bptt.cells import BY_NAME
from bptt.flow import gradient_flow

STATES = ("hidden", "cell", "state 3", "state 4")
EACH_MODE = pytest.mark.parametrize("mode", [*BY_NAME, "LSTM_PROJECTED"])
EACH_WAY = pytest.mark.parametrize("way", ["twin dense", "native dense", "twin", "native"])
DOUBLE = torch.float64


@contextmanager
def going(way: str):
    """Follow losses in one of the ways there are: a matrix a step, or windows in the kernels."""
    kernels, *dense = way.split()
    with pytest.MonkeyPatch.context() as patch, using(kernels):
        patch.setattr(layers, "MANY", 0 if dense else math.inf)
        patch.setattr(layers, "SideBySide" if dense else "Dense", None)
        yield


def problem_of(mode: str, layers: int = 1, *, resets: bool = False) -> Problem:
    projection = 2 if mode == "LSTM_PROJECTED" else 0
    return Problem(
        mode.removesuffix("_PROJECTED"),
        layers,
        projection,
        lengths=(7, 7, 7),
        with_resets=resets,
    )


def losses_of(y: Tensor) -> Tensor:
    """L_t of each sequence, [T, B], not linear, and different for each step and sequence."""
    T, B = y.shape[:2]
    number = torch.arange(T * B, dtype=y.dtype).view(T, B, 1)
    weights = torch.linspace(0.5, 1.5, y.shape[2], dtype=y.dtype)
    return ((y + 0.1 * number).sin() * weights).sum(2) * (1 + 0.02 * number[..., 0])


@cache
def by_definition(problem: Problem, masks: tuple[Tensor, ...] = ()):
    """Norms [B, T, T] by (layer, name), and the inputs' credit: a backward pass for each loss.

    A zero is added to every state where it enters the step after, and to the hidden states where
    they leave upwards; the gradient with respect to the zeros is what is meant.
    """
    x = problem.x.detach().requires_grad_()
    states = [list(s) for s in problem.states]
    entering, upwards, outputs = [], [], []
    for t, h in enumerate(x):
        entering.append([])
        upwards.append([])
        for layer, w in enumerate(problem.weights):
            before = states[layer]
            if problem.with_resets:
                before = [s.masked_fill(problem.resets[t, :, None], 0) for s in before]
            after = problem.cell.step(h, tuple(before), w)
            zeros = [torch.zeros_like(s, requires_grad=True) for s in after]
            entering[-1].append(zeros)
            states[layer] = [s + z for s, z in zip(after, zeros, strict=True)]
            upwards[-1].append(torch.zeros_like(after[0], requires_grad=True))
            h = after[0] + upwards[-1][-1]
            if layer < len(masks):
                h = h * masks[layer][t]
        outputs.append(h)
    L = losses_of(torch.stack(outputs))
    T, B = L.shape
    found = {
        (layer, name): torch.zeros(B, T, T, dtype=DOUBLE)
        for layer in range(problem.layers)
        for name in STATES[: problem.cell.states]
    }
    credit = torch.zeros(B, T, T, dtype=DOUBLE)
    for t in range(T):

        def norms(z: Tensor, t=t) -> Tensor:
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            return torch.autograd.grad(L[t].sum(), z, **options)[0].norm(dim=1)

        for (layer, name), rows in found.items():
            which = STATES.index(name)
            for s in range(t):
                rows[:, t, s] = norms(entering[s][layer][which])
            rows[:, t, t] = norms(upwards[t][layer]) if name == "hidden" else math.nan
        (g,) = torch.autograd.grad(L[t].sum(), x, retain_graph=True)
        credit[:, t] = (g * x).sum(2).t()
    return found, credit, L.detach()


def follow_all(problem: Problem, **options):
    """All pairs of a problem."""
    return gradient_flow(
        problem.module(),
        problem.x,
        losses_of,
        initial_of(problem),
        resets=problem.resets,
        dynamics=False,
        **options,
    )


def initial_of(problem: Problem):
    stacked = [torch.stack(s).detach() for s in zip(*problem.states, strict=True)]
    return stacked[0] if len(stacked) == 1 else tuple(stacked)


def assert_is(flow, expected, credit=None, losses=None, rtol=1e-10):
    assert {(s.layer, s.name) for s in flow.states} == set(expected)
    for s in flow.states:
        torch.testing.assert_close(
            s.norms, expected[s.layer, s.name], rtol=rtol, atol=1e-13, equal_nan=True
        )
    if credit is not None:
        torch.testing.assert_close(flow.attribution, credit, rtol=rtol, atol=1e-12)
    if losses is not None:
        torch.testing.assert_close(flow.losses, losses, rtol=rtol, atol=1e-12)


# ------------------------------------------------------------------- bptt's own and torch.nn's


@EACH_MODE
@EACH_WAY
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("resets", [False, True])
def test_all_pairs_are_those_of_separate_backward_passes(mode, way, layers, resets):
    problem = problem_of(mode, layers, resets=resets)
    expected = by_definition(problem)
    # There is something to find: far back, in every layer, and not the same everywhere.
    for norms in expected[0].values():
        assert norms[:, -1, 0].max() > 1e-5 or resets
        assert norms[:, 1:, 0].unique().numel() > 6
    with going(way):
        flow = gradient_flow(
            problem.module(),
            problem.x,
            losses_of,
            initial_of(problem),
            resets=problem.resets,
            dynamics=False,
        )
    assert_is(flow, *expected)
    assert flow.times == tuple(range(7))
    assert (flow.steps, flow.batch, flow.lags) == (7, 3, 7)


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "GRU", "LSTM", "LSTM_PROJECTED"])
@EACH_WAY
def test_a_network_of_torch_nn_is_followed_with_its_own_weights(mode, way):
    problem = problem_of(mode, 2)
    ours = problem.module()
    kind = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}[problem.mode.partition("_")[0]]
    options = {"nonlinearity": problem.mode[4:].lower()} if kind is nn.RNN else {}
    if problem.projection:
        options["proj_size"] = problem.projection
    theirs = kind(problem.inputs, problem.hidden, 2, dtype=DOUBLE, **options)
    theirs.load_state_dict(ours.state_dict())
    with going(way):
        flow = gradient_flow(theirs, problem.x, losses_of, initial_of(problem), dynamics=False)
    assert_is(flow, *by_definition(problem))
    assert as_ours(theirs).weight_hh_l1 is theirs.weight_hh_l1
    assert type(theirs) is kind


def test_a_subclass_that_computes_something_else_is_not_taken_for_what_it_is_not():
    class Negative(nn.GRU):
        def forward(self, x, hx=None):
            y, h = super().forward(x, hx)
            return -3 * y, h

    class Named(nn.GRU):
        pass

    assert as_ours(Negative(2, 3)) is None
    assert as_ours(Named(2, 3)) is not None
    module, x = Negative(2, 3).double(), torch.randn(5, 2, 2, dtype=DOUBLE)
    plain = Named(2, 3).double()
    plain.load_state_dict(module.state_dict())
    tripled = gradient_flow(module, x, dynamics=False).of(name="hidden")
    single = gradient_flow(plain, x, dynamics=False).of(name="hidden")
    at = torch.ones(5, 5).tril(-1).bool()  # at lag 0 nothing is known of it
    torch.testing.assert_close(tripled[at], 3 * single[at], rtol=1e-10, atol=0)
    assert tripled.diagonal().isnan().all()


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
@EACH_WAY
def test_float32_is_as_exact_as_it_can_be(mode, way):
    problem = problem_of(mode, 2)
    expected, _, losses = by_definition(problem)
    state = initial_of(problem)
    state = state.float() if isinstance(state, Tensor) else tuple(s.float() for s in state)
    with going(way):
        flow = gradient_flow(
            problem.module().float(), problem.x.float(), losses_of, state, dynamics=False
        )
    for s in flow.states:
        assert s.norms.dtype == DOUBLE
        e = expected[s.layer, s.name]
        torch.testing.assert_close(s.norms, e, rtol=2e-4, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(flow.losses, losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["twin", "native"])
@pytest.mark.parametrize("most_windows", [1, 6, 512])
def test_chunks_of_losses_change_nothing(way, most_windows, monkeypatch):
    """However few losses travel together, and whichever of the two limits says so."""
    problem = problem_of("LSTM", 2)
    expected = by_definition(problem)
    monkeypatch.setattr(windows, "MOST_WINDOWS", most_windows)
    seen = []
    follow = windows.SideBySide._follow_some
    monkeypatch.setattr(
        windows.SideBySide,
        "_follow_some",
        lambda self, d_y, chunk: (seen.append(chunk.many), follow(self, d_y, chunk))[1],
    )
    for budget in (1, 4000, 2**28):
        seen.clear()
        with going(way):
            flow = follow_all(problem, budget=budget)
        assert_is(flow, *expected)
        assert sum(seen) == 21
        if budget == 1:
            assert seen == [3] * 7
        if (budget, most_windows) == (2**28, 512):
            assert seen == [21]


@EACH_MODE
@pytest.mark.parametrize("kernels", ["twin", "native"])
def test_chunks_of_sequences_change_nothing(mode, kernels, monkeypatch):
    problem = problem_of(mode, 2, resets=True)
    expected = by_definition(problem)
    seen = []
    back = dense._Some.back
    monkeypatch.setattr(
        dense._Some, "back", lambda self, s: (seen.append(self.batch), back(self, s))[1]
    )
    for budget, sizes in ((1, [1, 1, 1]), (2**28, [3])):
        seen.clear()
        with going(f"{kernels} dense"):
            flow = follow_all(problem, budget=budget)
        assert_is(flow, *expected)
        assert [b.stop - b.start for b in seen[::7]] == sizes


def test_many_losses_get_a_matrix_and_few_go_side_by_side(monkeypatch):
    taken = []
    for way in ("Dense", "SideBySide"):
        real = getattr(layers, way)
        monkeypatch.setattr(
            layers, way, lambda *a, way=way, real=real: (taken.append(way), real(*a))[1]
        )
    gru, x = bptt.GRU(2, 3), torch.randn(30, 1, 2)
    for options in ({}, {"times": [29, 15]}, {"lags": 5}, {"lags": 10}):
        gradient_flow(gru, x, dynamics=False, **options)
    assert taken == ["Dense", "SideBySide", "SideBySide", "Dense"]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_what_vanishes_is_followed_down_to_the_smallest_numbers(dtype):
    """A product of 40 factors of 1e-2: in float32 nothing is left of it."""
    rnn = bptt.RNN(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(1e-2)
    x = torch.zeros(40, 1, 1, dtype=dtype)
    for way in ("twin dense", "native dense", "twin"):
        with going(way):
            norms = gradient_flow(rnn, x, lambda y: y[:, :, 0], dynamics=False).norms[-1].flip(0)
        expected = 1e-2 ** torch.arange(40, dtype=DOUBLE)
        sure = 40 if dtype == DOUBLE else 18
        torch.testing.assert_close(norms[:sure], expected[:sure], rtol=1e-5, atol=0)
        assert (norms[sure:] <= 1e-35).all()


@pytest.mark.parametrize("way", ["twin dense", "native dense", "native", "foreign"])
@pytest.mark.parametrize("times", [None, (6,), (0, 3, 4), [5, 2, 2]])
@pytest.mark.parametrize("lags", [1, 2, 4, 7, 100])
def test_only_the_pairs_asked_for_are_followed(way, times, lags):
    foreign = way == "foreign"
    problem = problem_of("LSTM", 2, resets=True)
    expected, credit, losses = by_definition(problem)
    module = AsForeign(problem.module()) if foreign else problem.module()
    with going(way.replace("foreign", "twin dense")):
        flow = gradient_flow(
            module,
            problem.x,
            losses_of,
            initial_of(problem),
            times=times,
            lags=lags,
            resets=problem.resets,
            dynamics=False,
        )
    chosen = sorted(set(range(7) if times is None else times))
    assert flow.times == tuple(chosen)
    assert flow.lags == min(lags, chosen[-1] + 1)
    lag = torch.tensor(chosen).unsqueeze(1) - torch.arange(7)
    torch.testing.assert_close(flow.losses, losses[chosen], rtol=1e-10, atol=0)
    for values, whole in [
        (flow.attribution, credit),
        *((s.norms, expected[s.layer, name_of(s.name)]) for s in flow.states),
    ]:
        here = whole[:, chosen]
        followed = (lag >= 0) & (lag < lags)
        known = here.isfinite() & (followed if not foreign else followed & (lag > 0))
        if values is flow.attribution:
            known = followed.expand_as(here)
        torch.testing.assert_close(values[known], here[known], rtol=1e-10, atol=1e-12)
        assert (values[:, lag < 0] == 0).all()
        assert values[:, lag >= lags].isnan().all()


def name_of(place: str) -> str:
    return dict(zip("0123", STATES, strict=True)).get(place, place)


@EACH_WAY
def test_dropout_drops_the_same_units_for_all_losses(way):
    problem = problem_of("GRU", 3)
    module = problem.module(dropout=0.5)
    masks = []

    def dropout(x: Tensor, p: float, training: bool) -> Tensor:
        assert (p, training) == (0.5, True)
        masks.append((torch.rand_like(x) < 0.5) * 2.0)
        return x * masks[-1]

    with pytest.MonkeyPatch.context() as patch, going(way):
        patch.setattr(nn.functional, "dropout", dropout)
        flow = gradient_flow(module, problem.x, losses_of, initial_of(problem), dynamics=False)
    assert len(masks) == 2
    expected = by_definition(problem, tuple(m.view(7, 3, -1) for m in masks))
    assert_is(flow, *expected)
    evaluated = gradient_flow(
        module.eval(), problem.x, losses_of, initial_of(problem), dynamics=False
    )
    assert_is(evaluated, *by_definition(problem))


def test_batch_first_and_unbatched_inputs():
    problem = problem_of("LSTM", 2)
    expected, credit, losses = by_definition(problem)
    module = problem.module(batch_first=True)
    flow = gradient_flow(
        module,
        problem.x.transpose(0, 1),
        lambda y: losses_of(y.transpose(0, 1)),
        initial_of(problem),
        dynamics=False,
    )
    assert_is(flow, expected, credit, losses)
    module = problem.module()
    h, c = initial_of(problem)
    flow = gradient_flow(
        module,
        problem.x[:, 0],
        lambda y: losses_of(y.unsqueeze(1).expand(7, 3, -1))[:, 0],
        (h[:, 0], c[:, 0]),
        dynamics=False,
    )
    assert flow.batch == 1
    assert_is(flow, {k: v[:1] for k, v in expected.items()}, credit[:1], losses[:, :1])


def test_a_loss_of_all_sequences_together():
    """[T]: a sum gives each sequence the norms of its own loss, a mean the B-th part of them."""
    problem = problem_of("GRU", 1)
    expected, credit, losses = by_definition(problem)
    run = (problem.module(), problem.x)
    given = {"state": initial_of(problem), "dynamics": False}
    flow = gradient_flow(*run, lambda y: losses_of(y).sum(1), **given)
    assert_is(flow, expected, credit)
    torch.testing.assert_close(flow.losses, losses.sum(1, keepdim=True).expand(7, 3))
    flow = gradient_flow(*run, lambda y: losses_of(y).mean(1), **given)
    assert_is(flow, {k: v / 3 for k, v in expected.items()}, credit / 3)


def test_the_loss_by_default_is_a_random_direction_of_each_step():
    problem = problem_of("LSTM", 1)
    found = [
        gradient_flow(m, problem.x, state=initial_of(problem), dynamics=False)
        for m in (problem.module(), problem.module(), AsForeign(problem.module()))
    ]
    torch.testing.assert_close(found[0].norms.diagonal(), torch.ones(7, dtype=DOUBLE))
    assert torch.equal(found[0].norms, found[1].norms)
    at = torch.ones(7, 7).tril(-1).bool()
    torch.testing.assert_close(found[2].norms[at], found[0].norms[at], rtol=1e-10, atol=0)
    torch.testing.assert_close(found[2].losses, found[0].losses)
    y, _ = problem.module()(problem.x, initial_of(problem))
    # Linear in y: what each unit adds to the losses is its own, so L is bounded by its norm.
    assert (found[0].losses.abs() <= y.norm(dim=2) + 1e-12).all()
    assert found[0].losses.unique().numel() == 21


def test_parameters_keep_their_gradients_and_modes():
    problem = problem_of("GRU", 2)
    module, x = problem.module(), problem.x
    with torch.no_grad():
        flow = gradient_flow(module, x, losses_of, initial_of(problem), dynamics=False)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert x.grad is None
    assert not any(s.norms.requires_grad for s in flow.states)
    assert_is(flow, *by_definition(problem))
    module.requires_grad_(False)
    assert_is(
        gradient_flow(AsForeign(module), x, losses_of, initial_of(problem), dynamics=False),
        *foreign_names(by_definition(problem)),
    )


# --------------------------------------------------------------------------- any other module


class AsForeign(nn.Module):
    """A module of which nothing is known but how to call it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x, state=None):
        return self.inner(x, state)


def foreign_names(expected):
    """What is expected of :class:`AsForeign`: places for names, and nothing at lag 0."""
    found, credit, losses = expected
    several = any(name == "cell" for _, name in found)
    renamed = {}
    for (layer, name), norms in found.items():
        norms = norms.clone()
        norms.diagonal(dim1=1, dim2=2).fill_(math.nan)
        place = str(STATES.index(name)) if several else "state"
        renamed[layer, place] = norms
    return renamed, credit, losses


@EACH_MODE
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("resets", [False, True])
def test_any_module_is_followed_step_by_step(mode, layers, resets):
    problem = problem_of(mode, layers, resets=resets)
    flow = gradient_flow(
        AsForeign(problem.module()),
        problem.x,
        losses_of,
        initial_of(problem),
        resets=problem.resets,
        dynamics=False,
    )
    assert_is(flow, *foreign_names(by_definition(problem)))


@pytest.mark.parametrize("budget", [1, 3000, 2**28])
def test_pieces_of_a_step_change_nothing(budget):
    problem = problem_of("LSTM", 2)
    flow = gradient_flow(
        AsForeign(problem.module()),
        problem.x,
        losses_of,
        initial_of(problem),
        budget=budget,
        dynamics=False,
    )
    assert_is(flow, *foreign_names(by_definition(problem)))


class Fast(torch.autograd.Function):
    """A function whose backward pass torch cannot batch."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return torch.from_numpy(g.numpy() * (1 - y * y).numpy())


class TwoMemories(nn.Module):
    """A cell with a state of its own kind: a dictionary, in which not all are numbers."""

    def __init__(self, activation=torch.tanh) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
        self.activation = activation

    def forward(self, x, state):
        h = self.activation(self.a(torch.cat([x, state["fast"]], 1)))
        slow = state["more"][0] * 0.9 + 0.3 * h
        fast = torch.tanh(self.b(torch.cat([x, slow], 1))) + h
        new = {"fast": fast, "more": (slow,), "count": state["count"] + 1, "name": "x"}
        return fast * 2, new


@pytest.mark.parametrize("activation", [torch.tanh, Fast.apply], ids=["batched", "one by one"])
def test_a_state_of_its_own_kind(activation):
    """A dictionary with a tuple in it, and whole numbers, and an activation known to nobody."""
    cell, T, B = TwoMemories(activation), 6, 2
    x = torch.randn(T, B, 1, dtype=DOUBLE)
    state = {
        "fast": torch.randn(B, 3, dtype=DOUBLE),
        "more": (torch.randn(B, 3, dtype=DOUBLE),),
        "count": torch.tensor([0, 2]),
        "name": "x",
    }
    flow = gradient_flow(bptt.Stepwise(cell), x, losses_of, state, dynamics=False)
    assert [(s.layer, s.name) for s in flow.states] == [(0, "fast"), (0, "more.0")]

    entering, outputs, xs = [], [], [x_t.clone().requires_grad_() for x_t in x]
    for x_t in xs:
        y, state = cell(x_t, state)
        outputs.append(y)
        zeros = [torch.zeros(B, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2)]
        entering.append(zeros)
        state = {
            **state,
            "fast": state["fast"] + zeros[0],
            "more": (state["more"][0] + zeros[1],),
        }
    L = losses_of(torch.stack(outputs))
    for t in range(T):
        for s in range(t):
            g = torch.autograd.grad(L[t].sum(), entering[s], retain_graph=True)
            for state_flow, d in zip(flow.states, g, strict=True):
                torch.testing.assert_close(state_flow.norms[:, t, s], d.norm(dim=1))
        for s in range(t + 1):
            (g,) = torch.autograd.grad(L[t].sum(), xs[s], retain_graph=True)
            torch.testing.assert_close(flow.attribution[:, t, s], (g * xs[s]).sum(1))


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_of_torch_nn_know_what_their_state_is_called(kind):
    cell = getattr(nn, kind)(2, 3).double()
    x = torch.randn(5, 2, 2, dtype=DOUBLE)
    flow = gradient_flow(bptt.Stepwise(cell), x, dynamics=False)
    names = ["hidden", "cell"] if kind == "LSTMCell" else ["hidden"]
    assert [s.name for s in flow.states] == names
    whole = getattr(bptt, kind.removesuffix("Cell"))(2, 3, dtype=DOUBLE)
    whole.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    same = gradient_flow(whole, x, dynamics=False)
    at = torch.ones(5, 5).tril(-1).bool()
    for name in names:
        torch.testing.assert_close(flow.of(name=name)[at], same.of(name=name)[at])


def test_of_a_linear_cell_the_norms_are_those_of_powers():
    """y_t = h_t = W h_{t-1} + x_t, L_t = ⟨v_t, y_t⟩: ∂L_t/∂h_s = (Wᵀ)^(t-s) v_t."""
    W = torch.randn(4, 4, dtype=DOUBLE)
    W = 0.9 * W / torch.linalg.eigvals(W).abs().max()

    class Linear(nn.Module):
        def forward(self, x, h):
            return (h @ W.t() + x,) * 2

    T, v = 60, torch.randn(60, 4, dtype=DOUBLE)
    flow = gradient_flow(
        bptt.Stepwise(Linear()),
        torch.randn(T, 2, 4, dtype=DOUBLE),
        lambda y: (y * v.unsqueeze(1)).sum(2),
        torch.zeros(2, 4, dtype=DOUBLE),
        dynamics=False,
    )
    for t in (0, 1, 7, 59):
        g = v[t]
        for s in reversed(range(t)):
            g = W.t() @ g
            expected = g.norm().expand(2)
            torch.testing.assert_close(flow.states[0].norms[:, t, s], expected, rtol=1e-9, atol=0)


def test_many_calls_are_not_made():
    """T products, not T backward passes: each step's graph is gone back through twice."""
    count = [0]

    class Counted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            count[0] += 1
            return g

    class Cell(nn.Module):
        def forward(self, x, h):
            h = torch.tanh(Counted.apply(h) + x)
            return h, h

    x, h = torch.randn(20, 2, 3), torch.zeros(2, 3)
    gradient_flow(bptt.Stepwise(Cell()), x, state=h, dynamics=False)
    assert 20 <= count[0] <= 2 * 20 + 3  # and those of the check of one step


def test_a_whole_language_model_is_followed_from_its_tokens():
    tokens = torch.randint(5, (8, 2))
    embedding, inner, readout = nn.Embedding(5, 4), bptt.LSTM(4, 6, 2), nn.Linear(6, 5)
    for m in (embedding, inner, readout):
        m.double()

    class Model(nn.Module):
        def forward(self, tokens, state=None):
            y, state = inner(embedding(tokens), state)
            return readout(y), state

    def losses(logits: Tensor) -> Tensor:
        return cross_entropy(logits.movedim(2, 1), tokens, reduction="none")

    flow = gradient_flow(Model(), tokens, losses, dynamics=False)
    same = gradient_flow(
        inner, embedding(tokens).detach(), lambda y: losses(readout(y)), dynamics=False
    )
    assert flow.attribution is None
    assert same.attribution is not None
    at = torch.ones(8, 8).tril(-1).bool()
    for layer in (0, 1):
        for place, name in enumerate(("hidden", "cell")):
            a, b = flow.of(layer=layer, name=str(place)), same.of(layer=layer, name=name)
            torch.testing.assert_close(a[at], b[at], rtol=1e-9, atol=1e-15)


# ------------------------------------------------------------------------- what is not taken


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda y: y.sum(), "a loss for each step"),
        (lambda y: y.sum(2).t(), "give batch_first=True"),
        (lambda y: y.sum(2).cumsum(0), "depends on the outputs of other steps"),
        (lambda y: y.sum(2).roll(1, 1), "depends on the outputs of other steps"),
        (lambda y: y.sum((1, 2)).flip(0), "depends on the outputs of other steps"),
        (lambda y: y.detach().sum(2), "depend on no output"),
        (lambda y: [0.0] * 7, "got list"),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_losses_that_are_not_one_for_each_step_are_refused(losses, message, foreign):
    problem = problem_of("GRU")
    module = AsForeign(problem.module()) if foreign else problem.module()
    with pytest.raises(ValueError, match=message):
        gradient_flow(module, problem.x, losses, initial_of(problem))


@pytest.mark.parametrize("foreign", [False, True])
def test_no_sequence_at_all_is_refused(foreign):
    module = AsForeign(nn.GRU(2, 3)) if foreign else nn.GRU(2, 3)
    with pytest.raises(ValueError, match="a batch of 0"):
        gradient_flow(module, torch.zeros(5, 0, 2))


def test_a_foreign_module_without_a_batch_has_no_dynamics():
    embedding, gru = nn.Embedding(5, 2, dtype=DOUBLE), nn.GRU(2, 3, dtype=DOUBLE)
    tokens = torch.tensor([0, 4, 2, 2, 1])

    def module(tokens, state=None):
        return gru(embedding(tokens), state)

    flow = gradient_flow(module, tokens, lambda y: y.sum(1))
    same = gradient_flow(gru, embedding(tokens).detach(), lambda y: y.sum(1))
    at = torch.ones(5, 5).tril(-1).bool()
    torch.testing.assert_close(flow.norms[at], same.norms[at], rtol=1e-9, atol=0)
    assert flow.dynamics is None
    assert flow.advice is not None
    assert flow.to_dict()["dynamics"] is None


def test_losses_that_are_not_followed_may_be_anything():
    problem = problem_of("GRU")
    module, state = problem.module(), initial_of(problem)

    def last_of_all(y: Tensor) -> Tensor:
        losses = y.sum(2).cumsum(0)
        return torch.cat([losses[:-1], y[-1:].sum(2)])

    flow = gradient_flow(module, problem.x, last_of_all, state, times=[6], dynamics=False)
    alone = gradient_flow(module, problem.x, lambda y: y.sum(2), state, times=[6], dynamics=False)
    torch.testing.assert_close(flow.norms, alone.norms, rtol=0, atol=0)
    with pytest.raises(ValueError, match="depends on the outputs of other steps"):
        gradient_flow(module, problem.x, last_of_all, state, times=[5], dynamics=False)


def test_what_is_not_checked_is_taken_as_it_is():
    problem = problem_of("GRU")
    calls = []

    def losses(y: Tensor) -> Tensor:
        y.register_hook(lambda g: calls.append("backward"))
        return y.sum(2).roll(1, 1)

    flow = gradient_flow(problem.module(), problem.x, losses, initial_of(problem), check=False)
    assert calls == ["backward"]
    assert flow.norms.isfinite().all()
    with pytest.raises(ValueError, match="depends on the outputs of other steps"):
        gradient_flow(problem.module(), problem.x, losses, initial_of(problem))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": []}, "from 0 to 6"),
        ({"times": [7]}, "from 0 to 6"),
        ({"times": [-8]}, "from 0 to 6, or from the end, -7 to -1"),
        ({"lags": 0}, "lags from 1 on"),
        ({"tokens": ["a"]}, "tokens for 7 steps, got 1"),
        ({"targets": ["a"] * 8}, "targets for 7 steps, got 8"),
        ({"batch_first": True}, "leave it out"),
        (
            {"resets": torch.zeros(7, 2, dtype=torch.bool)},
            r"\(7, 3\), \[T\] or \[T, B\], got \(7, 2\)",
        ),
        ({"resets": torch.zeros(3, 7, dtype=torch.bool)}, "transpose it"),
        ({"resets": torch.zeros(7, 3)}, "resets must be bool"),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_options_that_do_not_fit_are_refused(options, message, foreign):
    problem = problem_of("GRU")
    module = AsForeign(problem.module()) if foreign else problem.module()
    if foreign and "batch_first" in options:  # it may be true of any module
        return
    with pytest.raises(ValueError, match=message):
        gradient_flow(module, problem.x, state=initial_of(problem), **options)


def test_modules_and_inputs_that_have_no_lag_are_refused():
    x = torch.randn(5, 2, 3)
    for module in (nn.LSTM(3, 4, bidirectional=True), bptt.GRU(3, 4, bidirectional=True)):
        with pytest.raises(ValueError, match="bidirectional"):
            gradient_flow(module, x)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    with pytest.raises(ValueError, match="PackedSequence"):
        gradient_flow(nn.GRU(3, 4), packed)
    with pytest.raises(ValueError, match="at least one"):
        gradient_flow(nn.GRU(3, 4), x[:0])
    with pytest.raises(ValueError, match="no tensor"):
        gradient_flow(lambda x, s: (x, s), None)
    with pytest.raises(RuntimeError, match="expected 3 inputs"):
        gradient_flow(nn.GRU(3, 4), x[..., :2])


def test_a_state_whose_batch_is_elsewhere_is_refused_until_it_is_said_where():
    def module(x, h):
        outputs = []
        for x_t in x:
            h = torch.tanh(h + x_t)
            outputs.append(h)
        return torch.stack(outputs), h

    x, h = torch.randn(4, 2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="state_batch_dim"):
        gradient_flow(module, x, state=h)
    assert gradient_flow(module, x, state=h, state_batch_dim=0, dynamics=False).batch == 2


def test_several_outputs_take_a_loss():
    def module(x, h):
        return (x + h, x), h + x[-1]

    with pytest.raises(ValueError, match="loss_fn"):
        gradient_flow(module, torch.randn(1, 2, 3), state=torch.zeros(2, 3), state_batch_dim=0)


def test_the_gradient_that_is_not_batched_is_the_same(monkeypatch):
    """Where torch knows no batching rule, one by one."""
    problem = problem_of("LSTM")
    grad = torch.autograd.grad

    def unknown(*args, is_grads_batched=False, **options):
        if is_grads_batched:
            raise RuntimeError("Batching rule not implemented for aten::item")
        return grad(*args, **options)

    monkeypatch.setattr(stepwise.torch.autograd, "grad", unknown)
    flow = gradient_flow(
        AsForeign(problem.module()), problem.x, losses_of, initial_of(problem), dynamics=False
    )
    monkeypatch.undo()
    assert_is(flow, *foreign_names(by_definition(problem)))
