"""check_backward names each classic mistake, whatever is drawn, and accuses no right pass."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from learners import MISTAKES, backward

from bptt.textbook import Model, ReLU, check_backward

SEEDS = range(20)


def sizes(seed):
    """Other sizes with each seed, small ones, so that all of them take seconds."""
    rng = np.random.default_rng([7, seed])
    steps, hidden_dim = int(rng.integers(4, 7)), int(rng.integers(3, 5))
    word_dim = hidden_dim + int(rng.choice([-1, 1, 2]))
    return {"steps": steps, "hidden_dim": hidden_dim, "word_dim": word_dim, "seed": seed}


def learner(**options):
    def function(x, y, U, W, V, *bias):
        return backward(x, y, U, W, V, *bias, **options)[: 3 + len(bias)]

    return function


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_right_backward_pass_is_never_accused(dtype):
    for seed in range(60):
        bias, truncate = bool(seed % 2), (None, 0, 2)[seed % 3]
        function = learner(dtype=dtype, k=truncate)
        report = check_backward(function, bias=bias, truncate=truncate, **sizes(seed))
        assert report, f"{seed}\n{report}"
        assert not report.mistakes
        assert all(p.rank == p.unknowns for p in report.parameters.values())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake):
    wrong, kind = MISTAKES[mistake]
    for seed in SEEDS:
        dtype, bias = (np.float64, np.float32)[seed % 2], "b" in wrong or "c" in wrong
        report = check_backward(learner(mistake=mistake, dtype=dtype), bias=bias, **sizes(seed))
        assert not report
        assert [p.name for p in report.parameters.values() if not p.is_right] == [*wrong], seed
        assert report.mistakes == {kind}, f"{seed}\n{report}"
        assert f"Wrong: d{wrong[0]}" in str(report)


def test_a_truncated_gradient_is_named_with_its_reach():
    for seed in SEEDS:
        k, options = 1 + seed % 3, sizes(seed) | {"steps": 6}
        report = check_backward(learner(k=k), **options)
        assert report.mistakes == {"truncated"}
        assert f"goes back over {k} transition" in str(report)
        assert f"truncate={k}" in str(report)  # the remedy works
        assert check_backward(learner(k=k), truncate=k, **options)
        for wanted in (k - 1, k + 1):
            off = check_backward(learner(k=k), truncate=wanted, **options)
            assert off.mistakes == {"off-by-one"}
        assert check_backward(learner(), truncate=k, **options).mistakes == {"not-truncated"}


@pytest.mark.parametrize(
    ("factor", "loss", "kind"),
    [
        (2, "sum", "counted-twice"),
        (-1, "sum", "sign"),
        (1 / 6, "sum", "divided"),
        (1 / 36, "sum", "divided-twice"),
        (1 / 36, "mean", "divided-twice"),
        (1, "mean", "not-divided"),
        (2 / 6, "mean", "counted-twice"),
        (0.7, "sum", "scaled"),
        (0, "sum", "nothing"),
    ],
)
def test_a_factor_is_named(factor, loss, kind):
    for seed in SEEDS:
        options = sizes(seed) | {"steps": 6}

        def function(*given):
            return [factor * g for g in learner()(*given)]

        assert check_backward(function, loss=loss, **options).mistakes == {kind}


def test_the_mean_loss_has_the_gradient_divided_once():
    def function(*given):
        return [g / 8 for g in learner()(*given)]

    assert check_backward(function, loss="mean")
    assert check_backward(function).mistakes == {"divided"}


def test_two_mistakes_at_once_are_both_named():
    for seed in SEEDS:

        def function(*given):
            dU, dW, dV = learner(mistake="no factor")(*given)
            return dU, dW.T, 2 * dV

        report = check_backward(function, **sizes(seed))
        kinds = {"factor-missing", "transposed-result", "counted-twice"}
        assert report.mistakes == kinds, report


def test_mistakes_of_all_gradients_and_one_of_dW_alone_are_told_apart():
    """Three at once: a pair that dU shows, and the spare row in dW alone."""

    def function(x, y, U, W, V):
        T, H = len(x), len(W)
        s, p = np.zeros((T, H)), np.zeros((T, len(V)))
        for t in range(T):
            s[t] = np.tanh(U[:, x[t]] + W @ s[t - 1])
            p[t] = np.exp(V @ s[t]) / np.exp(V @ s[t]).sum()
        dU, dW, dV, delta = 0 * U, 0 * W, 0 * V, np.zeros(H)
        for t in reversed(range(T)):
            p[t, y[t]] -= 1
            dV += np.outer(p[t], s[t])
            delta = V.T @ p[t] + W @ delta * (1 - s[t] ** 2)
            dU[:, x[t]] += delta
            dW += np.outer(delta, s[t - 1])
        return dU, dW, dV

    for seed in range(6):
        report = check_backward(function, **sizes(seed))
        kinds = {
            p.name: {f.kind for d in p.findings for f in d} for p in report.parameters.values()
        }
        both = {"factor-missing", "weight-not-transposed"}
        assert kinds == {"U": both, "W": both | {"no-spare-row"}, "V": set()}
        assert "dU, dW: the factor" in str(report)


def test_a_gradient_by_differences_is_right_to_their_error_only():
    def function(*given):
        return [g * (1 + 4e-6) for g in learner()(*given)]

    report = check_backward(function)
    assert report.mistakes == {"imprecise"}
    assert "right to 4e-06" in str(report)


def test_explanations_that_fit_equally_well_are_all_said():
    report = check_backward(learner(mistake="dW s[t]"))
    other = check_backward(learner(mistake="dW transposed")).parameters["W"].findings
    dW = replace(report.parameters["W"], findings=report.parameters["W"].findings + other)
    text = str(replace(report, parameters=report.parameters | {"W": dW}))
    assert "2 explanations fit equally well" in text
    assert "1: it is taken with s[t]" in text
    assert "2: it is the transpose" in text


def test_a_mistake_and_truncation_are_both_named():
    report = check_backward(learner(mistake="dW s[t]", k=2))
    kinds = {p.name: {f.kind for d in p.findings for f in d} for p in report.parameters.values()}
    assert kinds == {"U": {"truncated"}, "W": {"truncated", "state-of-same-step"}, "V": set()}


def test_what_no_mistake_explains_is_said_with_its_residual_and_its_place():
    def function(*given):
        dU, dW, dV = learner()(*given)
        return dU, dW + 0.3 * np.eye(6)[[2]], dV

    report = check_backward(function)
    dW = report.parameters["W"]
    assert report.mistakes == {"unexplained"}
    assert dW.residual > 1e-3
    assert dW.weights is None
    assert f"a part of {dW.residual:.2g} is left over" in str(report)
    assert "Wrong are the columns 2 alone" in str(report)
    assert report.parameters["U"].is_right


def test_the_weights_of_a_truncated_gradient_are_its_band():
    report = check_backward(learner(k=2))
    t, s = np.indices((8, 8))
    weights = report.parameters["W"].weights
    known = (s >= 1) & (s <= t)
    np.testing.assert_allclose(weights[known], (t - s <= 2)[known], atol=1e-9)
    assert np.isnan(weights[~known]).all()


def test_weights_that_have_no_name_are_printed():
    def function(x, y, U, W, V):
        dU, dW, dV = learner()(x, y, U, W, V)
        return (
            dU,
            dW
            + 0.5 * learner(k=1)(x, y, U, W, V)[1]
            - 0.2 * learner(mistake="only last loss")(x, y, U, W, V)[1],
            dV,
        )

    report = check_backward(function)
    assert report.mistakes == {"other"}
    assert "t =  7" in str(report)
    assert "1.3" in str(report)


# ----------------------------------------------------------------------- what is called


class Wrong(Model):
    def bptt(self, x, y):
        dU, dW, dV = super().bptt(x, y)
        return dU, dW.T, dV


def test_a_model_is_taken_and_left_as_it_was():
    model = Wrong(100, 10, bptt_truncate=None)
    before = model.W.copy(), model.W
    assert check_backward(model).mistakes == {"transposed-result"}
    assert model.W is before[1]
    assert (before[0] == model.W).all()
    assert (model.hidden_dim, model.word_dim) == (10, 100)
    assert check_backward(Model(100, 10, bptt_truncate=None))
    assert check_backward(Model(100, 10)).mistakes == {"truncated"}
    assert check_backward(Model(100, 10), truncate=4)
    with pytest.raises(ValueError, match="activation is ReLU"):
        check_backward(Model(7, 6, activation=ReLU()))


def test_a_network_of_ones_own_is_taken():
    class RNNNumpy:
        """As in WildML's tutorial: dU, dV, dW."""

        U = V = W = None

        def bptt(self, x, y):
            dU, dW, dV = learner()(x, y, self.U, self.W, self.V)
            return [dU, dV, dW]

    report = check_backward(RNNNumpy())
    assert report
    assert "returned as dU, dV, dW" in str(report)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "expected function"),
        (Model, "give an instance"),
        (lambda x, y: None, r"has the arguments \(x, y\)"),
    ],
)
def test_what_cannot_be_called_is_refused(given, says):
    with pytest.raises(TypeError, match=says):
        check_backward(given)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "max"},
        {"steps": 2},
        {"hidden_dim": 7},
        {"word_dim": 1},
        {"truncate": -1},
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        check_backward(learner(), **options)


def test_an_exception_in_the_function_is_the_learners_to_see():
    def function(x, y, U, W, V):
        return U[:, 99]

    with pytest.raises(IndexError):
        check_backward(function)


# --------------------------------------------------------------------- what is returned


def nothing(gradients):
    return None


def two(gradients):
    return gradients[:2]


def a_key_less(gradients):
    return {"dU": gradients[0], "dW": gradients[1]}


def words(gradients):
    return ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (nothing, "returned-nothing", "return dU, dW, dV"),
        (two, "returned-wrongly", "a list of 2; return 3"),
        (a_key_less, "returned-wrongly", "V is missing"),
        (words, "returned-wrongly", "floating-point"),
        (lambda g: [g[0].T, *g[1:]], "shape", r"dU has the shape (7, 6)"),
        (lambda g: [g[0], g[1], g[2].T], "shape", "return .T of it"),
        (lambda g: [g[0], g[1][None].repeat(8, 0), g[2]], "shape", "sum over that dimension"),
        (lambda g: [g[0], g[1].ravel()[:5], g[2]], "shape", "[H, H] = (6, 6)"),
        (lambda g: [g[0], g[1] / np.eye(6).clip(0.0), g[2]], "not-finite", "dW has 30 of 36"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_what_is_returned_wrongly_is_said(change, kind, says):
    report = check_backward(lambda *given: change(learner()(*given)))
    assert not report
    assert report.mistakes == {kind}
    assert says in str(report)


def test_where_one_gradient_has_a_wrong_shape_the_others_are_compared():
    report = check_backward(lambda *given: [g.T for g in learner()(*given)])
    assert report.mistakes == {"shape", "transposed-result"}
    assert [*report.parameters] == ["W"]


def test_a_bias_with_a_dimension_too_many_is_said():
    def function(*given):
        *weights, db, dc = learner()(*given)
        return *weights, db[:, None], dc

    assert ".reshape(6,)" in str(check_backward(function, bias=True))


def test_a_dictionary_may_be_returned():
    assert check_backward(lambda *given: dict(zip("UWV", learner()(*given), strict=True)))


def test_what_is_changed_in_place_is_said():
    def function(x, y, U, W, V):
        gradients = learner()(x, y, U, W, V)
        W -= 0.1 * gradients[1]
        return gradients

    report = check_backward(function)
    assert report.mistakes == {"changed-in-place"}
    assert "changes W," in str(report)


def test_buffers_that_are_not_set_to_zero_are_found():
    buffers = [0, 0, 0]

    def function(*given):
        buffers[:] = [b + g for b, g in zip(buffers, learner()(*given), strict=True)]
        return buffers

    assert check_backward(function).mistakes == {"not-set-to-zero"}


def test_a_buffer_that_is_filled_anew_is_right():
    buffers = [np.zeros((6, 7)), np.zeros((6, 6)), np.zeros((7, 6))]

    def function(*given):
        for buffer, g in zip(buffers, learner()(*given), strict=True):
            buffer[:] = g
        return buffers

    assert check_backward(function)


def test_what_differs_from_call_to_call_is_said():
    rng = np.random.default_rng(0)
    report = check_backward(lambda *given: [g + rng.normal() for g in learner()(*given)])
    assert report.mistakes == {"differs-each-call"}


def test_torch_is_not_loaded():
    code = (
        "import sys; from bptt.textbook import Model, check_backward;"
        "assert check_backward(Model(7, 6, bptt_truncate=None)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
