"""The hand-derived sequence against autograd on the cells, and against C[t, s] by definition.

All of it for the twin, and for the native kernels with each kind of vectors that there is here.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import credit_terms, weighted
from paths import PATHS, using
from problems import SPIKING, lengths, sizes_of, state, weights

from bptt._src.engines import reference
from bptt._src.engines.call import Call
from bptt._src.engines.sequence import sequence
from bptt._src.steps import Boundary, Steps
from bptt.cells import BY_NAME, Weights

CELLS = sorted(BY_NAME.items())
EACH_CELL = pytest.mark.parametrize("cell", [c for _, c in CELLS], ids=[m for m, _ in CELLS])


@pytest.fixture(scope="module", autouse=True, params=PATHS)
def path(request):
    """The kernels that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


def as_node(cell, x, s, w, steps, carry=None, resets=None):
    return sequence(Call(cell, x, s, w, steps, Boundary(carry, resets)))[:2]


def by_reference(cell, x, s, w, steps, carry=None, resets=None):
    return reference.forward(Call(cell, x, s, w, steps, Boundary(carry, resets)))[:2]


def gradients(run, cell, x, s, w, steps, *at, use_output=True, use_state=True):
    """All results and all gradients of a loss that weighs every element differently."""
    y, final = run(cell, x, s, w, steps, *at)
    results = ([y] if use_output else []) + (list(final) if use_state else [])
    loss = sum((r.sin() * torch.linspace(0.5, 1.5, r.numel()).view_as(r)).sum() for r in results)
    inputs = [t for t in (x, *s, *w) if t is not None and t.requires_grad]
    return [y, *final], torch.autograd.grad(loss, inputs, allow_unused=True)


def assert_same(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            # Never used is None for autograd, zero for the hand-derived backward.
            assert all(t is None or not t.any() for t in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@EACH_CELL
@settings(max_examples=12)  # of each cell, with each kind of kernels
@given(
    lengths=lengths(),
    inputs=st.integers(1, 5),
    hidden=st.integers(2, 5),
    bias=st.booleans(),
    projection=st.booleans(),
    reverse=st.booleans(),
    carry=st.booleans(),
    resets=st.booleans(),
    used=st.sampled_from([(True, True), (True, False), (False, True)]),
    seed=st.integers(0, 999),
)
def test_agrees_with_autograd_on_the_cells(
    cell, lengths, inputs, hidden, bias, projection, reverse, carry, resets, used, seed
):
    P = hidden - 1 if projection and cell.name == "LSTM" else 0
    w = weights(cell, inputs, hidden, bias=bias, projection=P, seed=seed)
    s = state(cell, len(lengths), hidden, projection=P, seed=seed)
    steps = Steps(sizes_of(lengths), reverse)
    N = sum(lengths)
    torch.manual_seed(seed)
    x = torch.randn(inputs, N, dtype=torch.float64).t().requires_grad_()  # not contiguous
    at = (
        torch.randint(0, 4, (N, 1)).double() / 2 if carry else None,  # 0, ½, 1, 3/2
        torch.rand(N, 1) < 0.3 if resets else None,
    )
    options = {"use_output": used[0], "use_state": used[1]}
    ours = gradients(as_node, cell, x, s, w, steps, *at, **options)
    theirs = gradients(by_reference, cell, x, s, w, steps, *at, **options)
    assert_same(ours[0], theirs[0])
    assert_same(ours[1], theirs[1])


@EACH_CELL
def test_carry_weighs_the_credit_terms_by_its_products(cell):
    T, B, I, H = 7, 3, 2, 4
    w, s = weights(cell, I, H), tuple(h.detach() for h in state(cell, B, H))
    x = torch.randn(T, B, I, dtype=torch.float64)
    carry = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.5, 1.0, 3.0], dtype=torch.float64)
    matrix = torch.ones(T, T, dtype=torch.float64).tril()
    for t in range(T):
        for back_to in range(t):
            matrix[t, back_to] = carry[back_to + 1 : t + 1].prod()

    def loss(h, t):
        return (t + 1) * h.sin().sum()

    terms = credit_terms(cell, x, s, w, loss)
    y, _ = as_node(
        cell, x.flatten(0, 1), s, w, Steps((B,) * T), carry.repeat_interleave(B).unsqueeze(1)
    )
    total = sum(loss(h, t) for t, h in enumerate(y.view(T, B, H)))
    ours = torch.autograd.grad(total, [p for p in w if p is not None])

    full = weighted(terms, torch.ones(T, T))
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(ours, full, strict=True))
    assert_same(ours, weighted(terms, matrix), 1e-12)


@EACH_CELL
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_and_gradgradcheck(cell, reverse, path):
    if cell.name in SPIKING:
        return  # tests/cells/test_lif.py compares it with what its surrogate means
    if cell.name == "RNN_RELU":
        seed = 3  # no unit within the finite difference of its kink
    else:
        seed = 0
    w, s = weights(cell, 2, 3, seed=seed), state(cell, 2, 3, seed=seed + 1)
    steps = Steps((2, 2, 1), reverse)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    resets = torch.tensor([0, 0, 0, 1, 0]).bool().unsqueeze(1)

    def run(x, *tensors):
        p = tensors[cell.states :]
        w = Weights(*p[:4], None, *p[4:])
        y, final = as_node(cell, x, tensors[: cell.states], w, steps, None, resets)
        return y, *final

    tensors = (x, *s, *(p for p in w if p is not None))
    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True)
    if path.isa in (None, "portable"):  # which goes through the cells, whatever the vectors
        assert torch.autograd.gradgradcheck(run, tensors)


def test_gradcheck_with_a_projection():
    cell = BY_NAME["LSTM"]
    w, s = weights(cell, 2, 3, projection=2), state(cell, 2, 3, projection=2)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def run(x, h, c, *w):
        y, final = as_node(cell, x, (h, c), Weights(*w), Steps((2, 2, 2)))
        return y, *final

    assert torch.autograd.gradcheck(run, (x, *s, *w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, *s, *w))


@EACH_CELL
def test_the_first_derivative_is_one_node_and_never_goes_through_the_cells(cell, monkeypatch):
    w, s = weights(cell, 2, 3), state(cell, 2, 3)
    x = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)

    def refuse(*_):
        raise AssertionError("went through the cells")

    with monkeypatch.context() as patch:
        patch.setattr(reference, "forward", refuse)
        y, final = as_node(cell, x, s, w, Steps((2,) * 4))
        assert y.grad_fn is final[0].grad_fn
        (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        with pytest.raises(AssertionError, match="went through the cells"):
            torch.autograd.grad(y.sum(), x, create_graph=True)
    y, _ = as_node(cell, x, s, w, Steps((2,) * 4))
    (through_cells,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(first, through_cells.detach(), rtol=1e-12, atol=1e-12)


@EACH_CELL
def test_nothing_given_is_changed_and_backward_can_be_repeated(cell):
    w, s = weights(cell, 2, 3), state(cell, 3, 3)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    grad, resets = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, 1) < 0.5
    given = [x, *s, *(p for p in w if p is not None), grad]
    before = [t.detach().clone() for t in given]
    y, final = as_node(cell, x, s, w, Steps((3, 2, 1)), None, resets)
    inputs = given[:-1]
    d_final = [torch.ones_like(f) for f in final]
    once = torch.autograd.grad((y, *final), inputs, (grad, *d_final), retain_graph=True)
    twice = torch.autograd.grad((y, *final), inputs, (grad, *d_final))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


@EACH_CELL
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("run", [as_node, by_reference], ids=["node", "loop"])
def test_a_cut_stops_an_infinite_gradient(cell, run, with_resets):
    w, s = weights(cell, 2, 3), state(cell, 1, 3)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    carry = torch.tensor([[1.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    resets = torch.zeros(4, 1, dtype=torch.bool) if with_resets else None
    y, _ = run(cell, x, s, w, Steps((1,) * 4), carry, resets)
    infinite = torch.zeros(4, 3, dtype=torch.float64)
    infinite[3] = float("inf")
    infinite[0] = 1
    (dx,) = torch.autograd.grad(y, x, infinite)
    assert not dx[2:].isfinite().all()
    assert dx[:2].isfinite().all()
    assert dx[0].any()


@EACH_CELL
def test_a_reset_clears_even_a_state_that_is_not_a_number(cell):
    w = weights(cell, 2, 3)
    s = tuple(torch.full_like(h, float("nan")) for h in state(cell, 1, 3))
    x = torch.randn(3, 2, dtype=torch.float64)
    resets = torch.tensor([[True], [False], [False]])
    y, _ = as_node(cell, x, s, w, Steps((1,) * 3), None, resets)
    zero = tuple(torch.zeros_like(h) for h in s)
    assert torch.equal(y, as_node(cell, x, zero, w, Steps((1,) * 3))[0])
    assert not as_node(cell, x, s, w, Steps((1,) * 3))[0].isfinite().any()


@EACH_CELL
@pytest.mark.parametrize(("steps", "batch"), [(3, 0), (1, 1), (1, 4)])
def test_sizes_of_nothing_and_of_one(cell, steps, batch):
    w, s = weights(cell, 1, 1), state(cell, batch, 1)
    x = torch.randn(steps * batch, 1, dtype=torch.float64, requires_grad=True)
    ours = gradients(as_node, cell, x, s, w, Steps((batch,) * steps))
    theirs = gradients(by_reference, cell, x, s, w, Steps((batch,) * steps))
    assert_same(ours[0], theirs[0])
    assert_same(ours[1], theirs[1])


@EACH_CELL
def test_only_the_gradients_that_are_needed_are_computed(cell):
    w = Weights(*(None if p is None else p.detach() for p in weights(cell, 2, 3)))
    s = tuple(h.detach() for h in state(cell, 2, 3))
    x = torch.randn(4, 2, dtype=torch.float64)
    y, final = as_node(cell, x, s, w, Steps((2, 2)))
    assert not y.requires_grad
    for name in ("ih", "hh", "b_ih", "b_hh") if cell.gates_h else ("ih", "b_ih"):
        one = w._replace(**{name: getattr(w, name).clone().requires_grad_()})
        y, final = as_node(cell, x, s, one, Steps((2, 2)))
        (ours,) = torch.autograd.grad(y.sum() + final[0].sum(), [getattr(one, name)])
        z, last = by_reference(cell, x, s, one, Steps((2, 2)))
        (theirs,) = torch.autograd.grad(z.sum() + last[0].sum(), [getattr(one, name)])
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@EACH_CELL
def test_forward_mode_is_the_transpose_of_the_backward_pass_with_carry_too(cell):
    w, s = weights(cell, 2, 3), state(cell, 2, 3)
    x = torch.randn(8, 2, dtype=torch.float64)
    carry = torch.tensor([0.5, 2.0, 0.0, 1.5]).double().repeat_interleave(2).unsqueeze(1)

    def run(x):
        return as_node(cell, x, s, w, Steps((2,) * 4), carry)[0]

    u, v = torch.randn_like(x), torch.randn(8, 3, dtype=torch.float64)
    _, forward = torch.func.jvp(run, (x,), (u,))
    x.requires_grad_()
    (backward,) = torch.autograd.grad(run(x), x, v)
    torch.testing.assert_close((forward * v).sum(), (u * backward).sum())


@EACH_CELL
def test_values_that_are_not_finite_spread_as_in_the_cells(cell):
    w, s = weights(cell, 2, 3), state(cell, 2, 3)
    for value in (float("nan"), float("inf"), 1e300):
        x = torch.randn(6, 2, dtype=torch.float64)
        x[2, 0] = value
        x.requires_grad_()
        ours = gradients(as_node, cell, x, s, w, Steps((2, 2, 2)))
        theirs = gradients(by_reference, cell, x, s, w, Steps((2, 2, 2)))
        assert torch.equal(ours[0][0].isnan(), theirs[0][0].isnan())
        if cell.name in ("RNN_RELU", "INDRNN", "RATE"):
            continue  # autograd keeps NaN out of units that are off; 0 · NaN does not
        for a, b in zip(ours[1], theirs[1], strict=True):
            if b is None:  # W_hh of a cell that has no rows of it
                assert not a.numel()
                continue
            assert torch.equal(a.isnan(), b.isnan())


@given(lengths=lengths(), reverse=st.booleans())
def test_the_state_before_each_row_is_that_of_the_step_before(lengths, reverse):
    steps, batch = Steps(sizes_of(lengths), reverse), len(lengths)
    rows = torch.arange(sum(lengths)).unsqueeze(1)
    initial = -1 - torch.arange(batch).unsqueeze(1)
    found = steps.previous(initial, rows)
    last = list(initial)
    for before, these in steps.forth(found, rows):
        for b, row in enumerate(these):
            assert before[b] == last[b]
            last[b] = row
