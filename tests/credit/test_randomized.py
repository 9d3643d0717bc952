"""Randomized credit: its mean over all draws is the full gradient, exactly."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from problems import Problem

from bptt import Plan, Randomized
from bptt.errors import ConfigError

CREDITS = {
    "constant": Randomized(mean=3, tail="constant"),
    "constant, short": Randomized(mean=1.25, tail="constant"),
    "heavy": Randomized(mean=3),
    "heavy, short": Randomized(mean=1.1, alpha=2.5),
    "heavy, alpha 3": Randomized(mean=20, alpha=3),
    "heavy, alpha 8": Randomized(mean=2, alpha=8),
    "pi": Randomized(pi=0.7),
    "pi of one": Randomized(pi=1),
    "pi of each step": Randomized(pi=(0.01, 0.5, 1, 0.1, 0.9, 0.4)),
}
EACH = pytest.mark.parametrize("credit", CREDITS.values(), ids=CREDITS.keys())


def every_draw(credit, steps):
    """All patterns of cuts, as ``(probability, carry)``.

    The probabilities come from the c_j of the places between the cuts, by the definition: δ is 1
    at the first boundary after a cut, and the sequence begins like after one.
    """
    for cuts in itertools.product([False, True], repeat=steps - 1):
        probability, since_cut = 1.0, 1
        for j, cut in enumerate(cuts, start=1):
            c = credit.cut_probability(j, np.array([float(since_cut)]), steps)[0]
            probability *= c if cut else 1 - c
            since_cut = 1 if cut else since_cut + 1
        if probability:
            # Below every probability, or above all of them; the first is never used.
            drawn = np.array([[0.5], *([0.0 if cut else 1 - 1e-15] for cut in cuts)])
            carry = credit.carry_of(drawn)[:, 0]
            assert [c == 0 for c in carry[1:]] == list(cuts)
            yield probability, carry


def test_the_probabilities_are_those_of_the_paper():
    since_cut = np.array([1.0, 2.0, 5.0])
    heavy = Randomized(mean=10, alpha=4).cut_probability(3, since_cut, 6)
    np.testing.assert_allclose(heavy, [3 / 21, 3 / 22, 3 / 25], rtol=1e-15)
    heavy = Randomized(mean=10, alpha=6).cut_probability(3, since_cut, 6)
    np.testing.assert_allclose(heavy, [5 / 41, 5 / 42, 5 / 45], rtol=1e-15)
    constant = Randomized(mean=10, tail="constant").cut_probability(3, since_cut, 6)
    np.testing.assert_allclose(constant, [0.1] * 3, rtol=1e-15)
    of_each = CREDITS["pi of each step"].cut_probability(3, since_cut, 6)
    np.testing.assert_allclose(of_each, [0.9] * 3, rtol=1e-15)


@EACH
@pytest.mark.parametrize("steps", range(1, 7))
def test_the_mean_of_the_weights_is_one(credit, steps):
    if isinstance(credit.pi, tuple):
        credit = Randomized(pi=credit.pi[:steps])
    W, initial, total = np.zeros((steps, steps)), np.zeros(steps), 0.0
    for probability, carry in every_draw(credit, steps):
        plan = Plan(steps, carry)
        W += probability * plan.matrix()
        initial += probability * plan.of_initial_state()
        total += probability
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    np.testing.assert_allclose(W, np.tril(np.ones((steps, steps))), rtol=1e-12)
    np.testing.assert_allclose(initial, 1, rtol=1e-12)


def gradient(problem, module, plan):
    x, states = problem.x, problem.states[0]
    hx = tuple(s.unsqueeze(0) for s in states)
    y, final = module(x, hx if len(hx) == 2 else hx[0], credit=plan)
    final = final if isinstance(final, tuple) else (final,)
    loss = problem.total(y, [tuple(s[0] for s in final)])
    found = torch.autograd.grad(loss, [*module.parameters(), x, *states])
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("name", ["constant", "heavy", "pi"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_of_the_gradients_is_the_full_one(mode, name, shared):
    steps = 5 if shared or name == "heavy" else 4  # 2⁴ draws, for each of two sequences if apart
    problem = Problem(mode, lengths=(steps, steps), hidden=2)
    module, draws = problem.module(), list(every_draw(CREDITS[name], steps))
    full = gradient(problem, module, None)
    mean, largest = torch.zeros_like(full), 0.0
    if shared:
        plans = draws
    else:
        pairs = itertools.product(draws, repeat=2)
        plans = [(p * q, np.stack([a, b], 1)) for (p, a), (q, b) in pairs]
    for probability, carry in plans:
        found = gradient(problem, module, Plan(steps, carry))
        mean += probability * found
        largest = max(largest, float((found - full).norm() / full.norm()))
    assert largest > 0.3  # each draw alone is something else
    assert (mean - full).norm() <= 1e-12 * full.norm()


@EACH
@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("steps", [1, 2, 6, 50])
def test_the_factors_are_those_of_a_walk_from_step_to_step(credit, steps, batch):
    if isinstance(credit.pi, tuple):
        credit = Randomized(pi=tuple(np.resize(credit.pi, steps).tolist()))
    drawn = np.random.default_rng(steps + batch).random((steps, batch))
    expected, since_cut = np.ones((steps, batch)), np.ones(batch)
    for j in range(1, steps):
        c = credit.cut_probability(j, since_cut, steps)
        cuts = drawn[j] < c
        expected[j] = np.where(cuts, 0.0, 1 / np.where(cuts, 1.0, 1 - c))
        since_cut = np.where(cuts, 1.0, since_cut + 1)
    np.testing.assert_array_equal(credit.carry_of(drawn), expected)


# ------------------------------------------------------------------------ lengths of the pieces


@pytest.mark.parametrize(("mean", "alpha"), [(1.5, 4.0), (10.0, 2.5), (35.0, 4.0), (35.0, 7.0)])
def test_the_mean_length_of_heavy_tailed_pieces_is_exactly_the_given_one(mean, alpha):
    """P(length > ℓ) = Γ(a+ℓ+2-α) Γ(a+1) / (Γ(a+2-α) Γ(a+ℓ+1)) with a = (α-2)·mean.

    What is left of the sum of them from ℓ on is P(length > ℓ) · (a+ℓ) / (α-2): at ℓ = 0, the mean.
    """
    credit, a, total, survives = Randomized(mean=mean, alpha=alpha), (alpha - 2) * mean, 0.0, 1.0
    for lag in range(400):
        logs = [math.lgamma(a + n) for n in (lag + 2 - alpha, 1, 2 - alpha, lag + 1)]
        np.testing.assert_allclose(survives, math.exp(logs[0] + logs[1] - logs[2] - logs[3]), 1e-9)
        rest = survives * (a + lag) / (alpha - 2)
        np.testing.assert_allclose(total + rest, mean, rtol=1e-12)
        total += survives
        survives *= 1 - credit.cut_probability(1, np.array([lag + 1.0]), 400)[0]


@pytest.mark.parametrize(
    "credit",
    [
        Randomized(mean=8.0),
        Randomized(mean=8.0, alpha=2.5),
        Randomized(mean=8.0, tail="constant"),
        Randomized(pi=7 / 8),
    ],
    ids=["heavy", "heavier", "constant", "pi"],
)
def test_lengths_that_are_drawn_have_that_mean(credit):
    """Of the first piece, or of as much of it as the sequence holds; 4 standard errors."""
    steps, batch = 60, 20_000
    carry = credit.plan(steps, batch, torch.Generator().manual_seed(1)).carry
    cuts = np.vstack([carry[1:] == 0, np.ones((1, batch), bool)])
    lengths = cuts.argmax(0) + 1
    survives, exact = 1.0, 0.0
    for lag in range(steps):
        exact += survives
        survives *= 1 - credit.cut_probability(1, np.array([lag + 1.0]), steps)[0]
    assert abs(lengths.mean() - exact) < 4 * lengths.std() / math.sqrt(batch)
    # Later pieces are as long: what comes after a cut is like the beginning.
    after = [carry[n:, b] for b, n in enumerate(lengths) if n <= 10]
    later = np.array([[*(c[1:31] == 0), True].index(True) + 1 for c in after])
    survives, exact = 1.0, 0.0
    for lag in range(31):
        exact += survives
        survives *= 1 - credit.cut_probability(1, np.array([lag + 1.0]), steps)[0]
    assert abs(later.mean() - exact) < 4 * later.std() / math.sqrt(len(later))


def test_long_pieces_weigh_less_with_a_heavy_tail():
    """Its weights grow like a power of the lag, those of a constant rate exponentially."""

    def weight_of_an_uncut_piece(credit, lag):
        return credit.carry_of(np.ones((lag + 1, 1))).prod()

    constant = weight_of_an_uncut_piece(Randomized(mean=10, tail="constant"), 200)
    assert constant == pytest.approx((10 / 9) ** 200)
    heavy = [weight_of_an_uncut_piece(Randomized(mean=10), lag) for lag in (1000, 2000)]
    assert math.log2(heavy[1] / heavy[0]) == pytest.approx(3, abs=0.05)  # ℓ^(α-1)


# ------------------------------------------------------------------------------------ the draw


@EACH
def test_each_sequence_has_cuts_of_its_own_unless_they_are_shared(credit):
    plan = credit.plan(6, 40, torch.Generator().manual_seed(0))
    assert plan.batch == 40
    assert (len(np.unique(plan.carry, axis=1).T) > 1) == (credit.pi != 1)
    shared = dataclasses.replace(credit, shared=True)
    assert shared.plan(6, 40).batch is None
    assert credit.plan(6).batch is None  # one sequence: nothing to keep apart


@EACH
def test_the_same_generator_gives_the_same_plan(credit):
    draws = [credit.plan(6, 20, torch.Generator().manual_seed(n)).carry for n in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert credit.pi == 1 or not np.array_equal(draws[0], draws[2])
    torch.manual_seed(3)
    np.testing.assert_array_equal(credit.plan(6, 20).carry, draws[0])  # torch's own


def test_a_generator_that_is_drawn_from_twice_gives_two_plans():
    generator = torch.Generator().manual_seed(0)
    first, second = (Randomized(mean=3).plan(20, generator=generator).carry for _ in range(2))
    assert not np.array_equal(first, second)


def test_the_form_of_d2l_is_the_constant_rate_draw_for_draw():
    for mean in (1.25, 2.0, 8.0):
        generators = [torch.Generator().manual_seed(2) for _ in range(2)]
        ours = Randomized(mean=mean, tail="constant").plan(50, 9, generators[0])
        d2l = Randomized(pi=1 - 1 / mean).plan(50, 9, generators[1])
        np.testing.assert_allclose(ours.carry, d2l.carry, rtol=1e-14)
        assert (ours.carry == 0).any()
        assert set(np.round(ours.carry.ravel(), 9)) == {0, 1, round(mean / (mean - 1), 9)}


def test_probabilities_of_each_step_are_those_of_its_boundary():
    carry = Randomized(pi=(0.5, 1, 0.25, 1e-300)).carry_of(np.full((4, 1), 0.8))[:, 0]
    np.testing.assert_array_equal(carry, [1, 1, 4, 0])


def test_a_rate_of_no_cut_is_full():
    assert Randomized(pi=1).plan(9, 3).is_full


@pytest.mark.parametrize(
    ("credit", "spelling"),
    [
        (Randomized(mean=35), "randomized:35"),
        (Randomized(mean=2.5, tail="constant"), "randomized:2.5,tail=constant"),
        (Randomized(mean=8, alpha=3.0, shared=True), "randomized:8,alpha=3,shared=True"),
        (Randomized(pi=0.75), "randomized:pi=0.75"),
    ],
)
def test_spelling(credit, spelling):
    assert credit.spelling == spelling


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"takes a mean length, Randomized\(mean=35\), or probabilities pi"),
        ({"mean": 3, "pi": 0.5}, "takes a mean length.*or probabilities pi"),
        ({"mean": 1}, "mean must be above 1 and finite, got 1"),
        ({"mean": math.inf}, "mean must be above 1 and finite, got inf"),
        ({"mean": math.nan}, "mean must be above 1 and finite, got nan"),
        ({"mean": 3, "alpha": 2}, "alpha must be above 2 and finite, got 2"),
        ({"mean": 3, "alpha": math.nan}, "alpha must be above 2 and finite, got nan"),
        ({"pi": 0.0}, "pi must be above 0 and at most 1, got 0.0"),
        ({"pi": 1.5}, "pi must be above 0 and at most 1, got 1.5"),
        ({"pi": (0.5, math.nan)}, "pi must be above 0 and at most 1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Randomized(**given)


def test_probabilities_of_another_length_are_refused():
    with pytest.raises(ConfigError, match="pi has 2 probabilities, the sequence 5 steps"):
        Randomized(pi=(0.5, 0.5)).plan(5)


def test_a_tail_of_another_name_is_refused_where_types_are_not_checked():
    credit = object.__new__(Randomized)
    vars(credit).update(mean=3, tail="light", alpha=4.0, shared=False, pi=None)
    with pytest.raises(ConfigError, match="tail must be heavy or constant, got 'light'"):
        credit.__post_init__()
