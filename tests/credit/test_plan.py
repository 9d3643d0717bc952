"""Plans: the matrix is what the definition says, and windows that are cuts become cuts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bptt import Full, Plan, Truncated
from bptt.credit import Block
from bptt.errors import ConfigError


@st.composite
def blocks_of(draw, steps):
    """Blocks that follow each other, each reaching back as far as it likes."""
    found, first = [], 0
    while first < steps:
        end = draw(st.integers(first + 1, steps))
        found.append(Block(first, end, draw(st.integers(0, first))))
        first = end
    return found


@st.composite
def arguments(draw, most=9):
    """``(steps, carry, blocks)`` of a plan."""
    steps = draw(st.integers(1, most))
    shape = (steps, *draw(st.sampled_from([(), (1,), (3,)])))
    factors = st.sampled_from([0.0, 0.25, 1.0, 1.0, 2.0, -0.5])  # exact in any order
    size = math.prod(shape)
    drawn = draw(st.lists(factors, min_size=size, max_size=size))
    blocks = draw(st.one_of(st.just([]), blocks_of(steps)))
    return steps, np.reshape(drawn, shape), blocks


def every_structure(steps):
    """All that blocks can be for so many steps."""

    def after(first):
        if first == steps:
            yield ()
        for end in range(first + 1, steps + 1):
            for since, rest in itertools.product(range(first + 1), after(end)):
                yield (Block(first, end, since), *rest)

    return list(after(0))


def definition(steps, carry, blocks):
    """W[t, s] = [s ≥ since(t)] · carry[s+1] ··· carry[t], and W[t, -1] of the initial state."""
    since = {t: b.since for b in blocks for t in range(b.first, b.end)}
    columns = carry.reshape(steps, -1).T
    W = np.zeros((len(columns), steps, steps))
    initial = np.zeros((len(columns), steps))
    for b, factors in enumerate(columns):
        for t in range(steps):
            for s in range(since.get(t, 0), t + 1):
                W[b, t, s] = np.prod(factors[s + 1 : t + 1])
            if since.get(t, 0) == 0:
                initial[b, t] = np.prod(factors[: t + 1])
    return (W, initial) if carry.ndim == 2 else (W[0], initial[0])


@given(arguments())
def test_the_matrix_is_its_definition(given):
    plan, (W, initial) = Plan(*given), definition(*given)
    np.testing.assert_array_equal(plan.matrix(), W)
    np.testing.assert_array_equal(plan.of_initial_state(), initial)
    assert plan.batch == (given[1].shape[1] if given[1].ndim == 2 else None)
    lags = [t - s for t, s in itertools.product(range(plan.steps), repeat=2) if W[..., t, s].any()]
    assert plan.reach == max(lags) + 1
    assert plan.is_full == (plan.is_product and (plan.carry == 1).all())


@given(arguments(), st.data())
def test_a_slice_of_a_product_is_a_part_of_its_matrix(given, data):
    steps, carry, _ = given
    plan = Plan(steps, carry)
    first = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(first + 1, steps))
    part = plan.slice(first, end)
    np.testing.assert_array_equal(part.matrix(), plan.matrix()[..., first:end, first:end])
    before = plan.matrix()[..., first - 1] if first else plan.of_initial_state()
    np.testing.assert_array_equal(part.of_initial_state(), before[..., first:end])


@pytest.mark.parametrize("steps", range(1, 6))
def test_windows_become_cuts_exactly_where_a_product_does_what_they_do(steps):
    """A product's factors are the weights beside the diagonal: there is one candidate."""
    kept = 0
    for blocks in every_structure(steps):
        W, initial = definition(steps, np.ones(steps), blocks)
        candidate = np.array([1.0, *np.diagonal(W, -1)])
        product, first = definition(steps, candidate, ())
        there_is_one = (product == W).all() and (first == initial).all()
        plan = Plan(steps, blocks=blocks)
        assert plan.is_product is bool(there_is_one), blocks
        np.testing.assert_array_equal(plan.matrix(), W)
        np.testing.assert_array_equal(plan.of_initial_state(), initial)
        if there_is_one:
            assert (plan.blocks, plan.backward_steps) == ((), steps)
            np.testing.assert_array_equal(plan.carry, candidate)
        else:
            kept += 1
            assert plan.blocks == blocks
            assert plan.backward_steps == sum(len(range(b.since, b.end)) for b in blocks)
            assert not plan.is_full
    assert bool(kept) == (steps > 2)


def test_cuts_of_windows_and_factors_of_each_sequence_go_together():
    carry = np.array([[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    plan = Plan(3, carry, (b for b in [Block(0, 1, 0), Block(1, 3, 1)]))
    assert plan.is_product
    np.testing.assert_array_equal(plan.carry, [[2, 3], [0, 0], [6, 7]])
    np.testing.assert_array_equal(carry[1], [4, 5])  # the user's own stays as it was


# ---------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("steps", range(1, 9))
def test_windows_are_those_of_williams_and_peng(steps):
    """A block's losses reach back ``reach`` steps from its end, had it all its ``every`` steps."""
    for every in range(1, steps + 3):
        for reach in range(every, steps + 3):
            plan = Plan.windows(steps, every=every, reach=reach)
            W = np.zeros((steps, steps))
            for t in range(steps):
                end = (t // every + 1) * every
                W[t, max(0, end - reach) : t + 1] = 1
            np.testing.assert_array_equal(plan.matrix(), W)
            assert plan.is_product == (every == reach or W.sum() == steps * (steps + 1) / 2)
            np.testing.assert_array_equal(
                Truncated(every=every, reach=reach).plan(steps).matrix(), W
            )
            if every == reach:
                np.testing.assert_array_equal(Truncated(every).plan(steps).matrix(), W)


def test_every_loss_reaches_as_far_as_is_promised():
    """At least reach - every + 1 steps, its own included, and the block's last one reach."""
    W = Truncated(every=3, reach=7).plan(20).matrix()
    far = W.sum(1)[7:]
    assert far.min() == 5
    assert far.max() == 7
    assert Truncated(every=3, reach=7).plan(20).reach == 7


def test_windows_cost_reach_over_every():
    assert Truncated(every=5, reach=15).plan(1000).backward_steps == 3 * 1000 - 10 - 5
    assert Truncated(5).plan(1000).backward_steps == Full().plan(1000).backward_steps == 1000


def test_full_is_full_and_what_is_as_long_as_the_sequence_is_too():
    assert Full().plan(5).is_full
    assert Truncated(5).plan(5).is_full
    assert Truncated(every=2, reach=6).plan(5).is_full
    assert not Truncated(4).plan(5).is_full
    assert not Truncated(every=1, reach=4).plan(5).is_full
    assert not Plan(2, carry=[0.5, 1]).is_full


def test_truncated_knows_its_window_and_its_history():
    assert (Truncated(4).window, Truncated(4).history) == (4, 0)
    credit = Truncated(every=3, reach=8)
    assert (credit.window, credit.history, credit.lengths) == (3, 5, (3, 8))
    assert eval(repr(credit)) == credit
    assert eval(repr(Truncated(4))) == Truncated(4)
    assert (Full().window, Full().history) == (None, 0)


@pytest.mark.parametrize(
    ("credit", "spelling"),
    [
        (Full(), "full"),
        (Truncated(35), "truncated:35"),
        (Truncated(every=10, reach=35), "truncated:every=10,reach=35"),
    ],
)
def test_spelling(credit, spelling):
    assert credit.spelling == spelling


# ------------------------------------------------------------------------------- as a credit


def test_a_plan_serves_as_a_credit_for_sequences_of_its_length():
    plan = Plan(4)
    assert plan.plan(4, 7) is plan
    with pytest.raises(ConfigError, match="4 steps, got 5"):
        plan.plan(5)


# ----------------------------------------------------------------------------------- its text


def read(text):
    """The numbers of a written matrix, zeros above the diagonal."""
    rows = [[0 if c == "." else float(c) for c in line.split()] for line in text.splitlines()]
    return np.array([row + [0] * (len(rows) - len(row)) for row in rows])


@given(arguments(most=16))
def test_the_text_is_the_matrix_of_the_first_sequence(given):
    plan = Plan(*given)
    lines = str(plan).splitlines()
    first = plan.matrix() if plan.batch is None else plan.matrix()[0]
    np.testing.assert_allclose(read("\n".join(lines[: plan.steps])), first, rtol=5e-3)
    notes = [] if plan.batch is None else [f"the first of {plan.batch} sequences"]
    assert lines[plan.steps :] == notes
    assert len({len(line) // (n + 1) for n, line in enumerate(lines[: plan.steps])}) == 1  # columns


@pytest.mark.parametrize("steps", [17, 64, 65, 3000])
@pytest.mark.parametrize("credit", [Full(), Truncated(3), Truncated(every=5, reach=7)], ids=str)
def test_of_a_long_one_only_the_corner_is_written(steps, credit):
    *corner, note = str(credit.plan(steps)).splitlines()
    np.testing.assert_array_equal(read("\n".join(corner)), credit.plan(steps).matrix()[:16, :16])
    assert note == f"the first 16 of {steps} steps"
    carry = np.ones((steps, 3))
    assert str(Plan(steps, carry)).endswith(f"of {steps} steps, the first of 3 sequences")


# -------------------------------------------------------------------------------- its errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0,), "at least one step, got 0"),
        ((3, [1, 1]), r"carry of shape \[3\] or \[3, B\], got \[2\]"),
        ((3, np.ones((2, 3))), r"carry of shape \[3\] or \[3, B\], got \[2, 3\]"),
        ((1, np.ones((1, 1, 1))), r"got \[1, 1, 1\]"),
        ((2, 1.0), r"got \[\]"),
        ((2, [1, np.nan]), "finite numbers; 0 cuts, 1 passes"),
        ((2, [1, np.inf]), "finite numbers"),
        ((4, None, [Block(1, 4, 0)]), r"got \(1, 4, 0\) after step 0"),
        ((4, None, [Block(0, 2, 0), Block(3, 4, 0)]), r"got \(3, 4, 0\) after step 2"),
        ((4, None, [Block(0, 2, 0), Block(1, 4, 0)]), r"got \(1, 4, 0\) after step 2"),
        ((4, None, [Block(0, 2, 0), Block(2, 2, 0)]), r"got \(2, 2, 0\) after step 2"),
        (
            (4, None, [Block(0, 2, 0), Block(2, 4, 3)]),
            r"since <= first < end; got \(2, 4, 3\)",
        ),
        ((4, None, [Block(0, 4, -1)]), r"got \(0, 4, -1\)"),
        ((4, None, [Block(0, 3, 0)]), "cover all 4 steps; these end at 3"),
        ((4, None, [Block(0, 5, 0)]), "cover all 4 steps; these end at 5"),
    ],
    ids=str,
)
def test_what_is_no_plan_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Plan(*given)


def test_windows_cannot_be_sliced():
    with pytest.raises(ConfigError, match="cannot be sliced"):
        Truncated(every=1, reach=2).plan(4).slice(0, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"Truncated takes a length.*got Truncated\(\)"),
        ({"k": 3, "every": 1, "reach": 2}, "takes a length.*or every and reach"),
        ({"every": 3}, r"every and reach.*got Truncated\(every=3\)"),
        ({"reach": 3}, "every and reach"),
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": True}, "k must be a positive integer, got True"),
        ({"every": 0, "reach": 4}, "every must be a positive integer, got 0"),
        ({"every": 4, "reach": 3}, "1 of 4 losses would be credited to nothing; use reach >= 4"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Truncated(**given)


def test_a_length_that_is_no_integer_is_refused_where_types_are_not_checked():
    credit = object.__new__(Truncated)
    vars(credit).update(k=2.5)
    with pytest.raises(ConfigError, match="k must be a positive integer, got 2"):
        credit.__post_init__()


def test_a_plan_for_one_sequence_serves_all_and_no_other_shape():
    import torch

    import bptt

    class One(bptt.Credit):
        def plan(self, steps, batch=1, generator=None):
            return Plan(steps, carry=np.full((steps, 1), 0.5))

    class Two(bptt.Credit):
        def plan(self, steps, batch=1, generator=None):
            return Plan(steps, carry=np.full((steps, 2), 0.5))

    class Array(bptt.Credit):
        def plan(self, steps, batch=1, generator=None):
            return np.full(steps, 0.5)

    gru, x = bptt.GRU(4, 5, batch_first=True).double(), torch.randn(3, 6, 4, dtype=torch.float64)

    def gradient(credit, run):
        y, _ = run(x, credit)
        return torch.autograd.grad(y.square().sum(), gru.weight_hh_l0)[0]

    runs = (
        lambda x, credit: gru(x, credit=credit),
        lambda x, credit: bptt.unroll(gru, x, credit=credit),
        lambda x, credit: bptt.unroll(gru, x, credit=credit, memory="recompute:8"),
    )
    expected = gradient(Plan(6, carry=np.full(6, 0.5)), runs[0])
    for run in runs:
        torch.testing.assert_close(gradient(One(), run), expected)
        with pytest.raises(ValueError, match=r"for 6 steps and a batch of 2.* a batch of 3"):
            run(x, Two())
        with pytest.raises(TypeError, match=r"must plan by returning a bptt\.Plan, got ndarray"):
            run(x, Array())
    assert repr(Plan(6, carry=np.ones((6, 2)))) == "<Plan of 6 steps, a batch of 2>"
