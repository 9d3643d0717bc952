"""The least squares: what is determined is right, and what is not is not given."""

import numpy as np
import pytest

from bptt._src.explain.patterns import recognise
from bptt._src.explain.solving import Equations, solve


def drawn(seed, T, numbers, count):
    rng = np.random.default_rng(seed)
    W = np.tril(rng.standard_normal((T, T)))
    terms = [rng.standard_normal((T, T, numbers)) for _ in range(count)]
    return (
        W,
        terms,
        [np.einsum("ts,tsn->n", W, C) for C in terms],
    )


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_found_and_errors_are_those_of_noise(seed):
    rng = np.random.default_rng(seed)
    W, terms, gradients = drawn(seed, int(rng.integers(2, 7)), 12, 4)
    lower = np.tri(len(W), dtype=bool)
    exact = solve([Equations(C, g) for C, g in zip(terms, gradients, strict=True)], 1e-9)
    assert exact.is_determined
    assert exact.is_weights
    np.testing.assert_allclose(exact.values[lower], W[lower], atol=1e-9)
    noisy = [g + 1e-3 * rng.standard_normal(g.shape) for g in gradients]
    found = solve([Equations(C, g) for C, g in zip(terms, noisy, strict=True)], 1e-2)
    off = abs(found.values - W)[lower] / found.errors[lower]
    assert off.max() < 5
    assert found.is_weights


def test_only_what_the_null_space_reaches_is_unknown():
    W, terms, _ = drawn(0, 3, 10, 1)
    terms[0][2, 1] = terms[0][2, 0]  # their sum alone is determined
    g = np.einsum("ts,tsn->n", W, terms[0])
    found = solve([Equations(terms[0], g)], 1e-9)
    assert (found.rank, found.unknowns) == (5, 6)
    assert not found.is_determined
    assert np.isnan(found.values[2, :2]).all()
    np.testing.assert_allclose(found.values[2, 2], W[2, 2])


def test_no_spare_equation_no_weights():
    _, terms, gradients = drawn(0, 3, 6, 1)
    found = solve([Equations(terms[0], gradients[0])], 1e-9)
    assert found.rank == found.unknowns == found.equations == 6
    assert not found.is_determined
    assert np.isnan(found.values).all()


def test_a_zero_term_is_no_unknown_and_a_zero_gradient_has_zero_weights():
    _, terms, _ = drawn(0, 3, 12, 1)
    terms[0][:, 0] = 0
    found = solve([Equations(terms[0], np.zeros(12))], 1e-9)
    assert found.unknowns == 3
    assert np.isnan(found.values[:, 0]).all()
    assert found.is_weights
    assert (found.values[[1, 2, 2], [1, 1, 2]] == 0).all()


# ------------------------------------------------------------------------------- patterns

t, s = np.indices((8, 8))


@pytest.mark.parametrize(
    ("matrix", "kind", "size", "factor"),
    [
        (s <= t, "full", None, 1),
        (2.0 * (s <= t), "full", None, 2),
        (-0.5 * (t == s), "truncated", 0, -0.5),
        (t - s <= 3, "truncated", 3, 1),
        (t // 2 == s // 2, "windows", 2, 1),
        (t // 3 == s // 3, "windows", 3, 1),
        ((t + 1) // 3 == (s + 1) // 3, "windows", None, 1),
        (s >= (t // 2 + 1) * 2 - 5, "reach", None, 1),
        (t == 7, "no-losses", None, 1),
        (t != 2, "no-losses", None, 1),
        (s >= 5, "no-steps", None, 1),
        (8.0 - t, "by-loss", None, 1),
        (s + 1.0, "by-step", None, 1),
        (0.5 ** (t - s), "by-distance", None, 1),
        (0.0 * t, "nothing", None, 0),
        (np.cos(3 * t + 5 * s * s), "other", None, 1),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_patterns(matrix, kind, size, factor, first):
    """With and without the weights of step 0, which W_hh has no term for."""
    values = np.where((s <= t) & (s >= first), matrix, np.nan).astype(float)
    noise = 1e-4 * np.random.default_rng(0).standard_normal(values.shape)
    found = recognise(values + noise, np.full((8, 8), 1e-4))
    assert found.kind == kind
    assert found.size == size
    assert found.factor == pytest.approx(factor, abs=1e-3)


def test_the_words_of_patterns_name_steps():
    def words(matrix):
        return recognise(np.where(s <= t, matrix, np.nan).astype(float), np.zeros((8, 8))).text

    assert "into steps 2 and 5" in words(t // 3 == s // 3)
    assert "only the loss of step 7" in words(t == 7)
    assert "only what is used at steps 5 to 7" in words(s >= 5)
    assert "used at steps 0, 1 and 3 is missing" in words(~np.isin(s, [0, 1, 3]))
    assert "T - t" in words(8.0 - t)
    assert "multiplied by 0.5" in words(0.5 ** (t - s))
    assert "t - s + 1" in words(t - s + 1.0)
