"""The model: its gradient against everything that can be set against it, and its training."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import bptt
from bptt.textbook import Model, ReLU, Sigmoid, Tanh

SENTENCE = [0, 1, 2, 3], [1, 2, 3, 4]


def sentence(words, T, seed=0):
    """T random words and the words after them, some of them more than once."""
    ids = np.random.default_rng(seed).integers(0, words, T + 1)
    return ids[:-1], ids[1:]


def far_reaching(bptt_truncate, words=7, hidden=6, seed=3):
    """A model with an orthogonal W and small inputs: what the loss says comes back undamped."""
    model = Model(words, hidden, bptt_truncate, seed=seed)
    model.W = np.linalg.qr(model.W)[0]
    model.U *= 0.1
    return model


def assert_same(found, expected, rtol):
    """Each of dU, dW and dV to within rtol of its greatest entry."""
    for name, a, b in zip("UWV", found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=f"d{name}")


def terms(model, x, y):
    """C[t, s]: what loss t owes to the use of U and W at step s. By definition, tanh only.

    ∂L_t/∂s_t · J_t ··· J_{s+1} · ∂⁺s_s/∂θ with J_j = diag(φ'(a_j)) W; Jacobians are multiplied out
    and one-hot vectors formed, unlike in what is tested.
    """
    U, W, V = model.U, model.W, model.V
    T, H = len(x), len(W)
    onehot = np.eye(U.shape[1])
    states, slopes, e = [np.zeros(H)], [], []
    for t in range(T):
        states.append(np.tanh(U @ onehot[x[t]] + W @ states[-1]))
        slopes.append(1 - states[-1] ** 2)
        p = np.exp(V @ states[-1])
        e.append(p / p.sum() - onehot[y[t]])
    C = {}
    for t in range(T):
        for s in range(t + 1):
            jacobian = np.eye(H)
            for j in range(t, s, -1):
                jacobian = jacobian @ (np.diag(slopes[j]) @ W)
            delta = (e[t] @ V @ jacobian) * slopes[s]
            C[t, s] = np.outer(delta, onehot[x[s]]), np.outer(delta, states[s])
    dV = sum(np.outer(e[t], states[t + 1]) for t in range(T))
    return C, dV


def windowed(model, x, y, k):
    """The sum of the terms with t - s <= k."""
    C, dV = terms(model, x, y)
    kept = [C[t, s] for t, s in C if t - s <= k]
    return sum(dU for dU, _ in kept), sum(dW for _, dW in kept), dV


def port(model, x, y, spare_row=True):
    """The two loops over an array of states, as in WildML's tutorial; full, tanh.

    ``s[t - 1]`` at t = 0 is the array's last row. It has to be a spare one, of zeros.
    """
    U, W, V, T = model.U, model.W, model.V, len(x)
    s = np.zeros((T + 1 if spare_row else T, len(W)))
    dU, dW, dV = np.zeros_like(U), np.zeros_like(W), np.zeros_like(V)
    for t in range(T):
        s[t] = np.tanh(U[:, x[t]] + W @ s[t - 1])
    for t in range(T):
        e = np.exp(V @ s[t])
        e /= e.sum()
        e[y[t]] -= 1
        dV += np.outer(e, s[t])
        delta = V.T @ e * (1 - s[t] ** 2)
        for i in range(t, -1, -1):
            dW += np.outer(delta, s[i - 1])
            dU[:, x[i]] += delta
            delta = W.T @ delta * (1 - s[i - 1] ** 2)
    return dU, dW, dV


# ------------------------------------------------------------------------------ the gradient


def test_gradient_check_of_the_tutorials():
    found = Model(100, 10, bptt_truncate=None, seed=10).gradient_check(*SENTENCE, tolerance=1e-6)
    assert set(found) == {"U", "W", "V"}
    assert 0 < max(found.values()) <= 1e-6


@pytest.mark.parametrize("activation", [Sigmoid(), ReLU()], ids=lambda g: type(g).__name__)
def test_gradient_check_of_other_nonlinearities(activation):
    model = Model(6, 4, bptt_truncate=None, seed=1, activation=activation)
    model.gradient_check(*sentence(6, 8))
    assert_same(model.bptt(*sentence(6, 8)), model.bptt_one_loop(*sentence(6, 8)), 1e-12)
    tanh = Model(6, 4, bptt_truncate=None, seed=1)
    assert abs(tanh.bptt(*sentence(6, 8))[1] - model.bptt(*sentence(6, 8))[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["U", "W", "V"])
def test_gradient_check_sees_one_wrong_entry_and_names_it(name):
    class Wrong(Model):
        def bptt(self, x, y):
            gradients = super().bptt(x, y)
            gradients["UWV".index(name)][2, 1] += 1e-4
            return gradients

    model = Wrong(5, 4, bptt_truncate=None, seed=0)
    before = model.U.copy(), model.W.copy(), model.V.copy()
    with pytest.raises(AssertionError, match=rf"d{name} at \(2, 1\)"):
        model.gradient_check(*SENTENCE)
    for old, new in zip(before, (model.U, model.W, model.V), strict=True):
        np.testing.assert_array_equal(old, new)  # every entry was put back


def test_gradient_check_fails_on_nan():
    model = Model(5, 4, bptt_truncate=None, seed=0)
    model.W[0, 0] = np.nan
    with pytest.raises(AssertionError):
        model.gradient_check(*SENTENCE)


def test_gradient_check_refuses_a_truncated_gradient():
    with pytest.raises(ValueError, match="truncates 4 words"):
        Model(5, 4, bptt_truncate=2, seed=0).gradient_check(*SENTENCE)
    Model(5, 4, bptt_truncate=3, seed=0).gradient_check(*SENTENCE)  # 3 transitions are all of 4


@pytest.mark.parametrize("T", [1, 2, 30])
def test_two_loops_are_one_loop(T):
    model, (x, y) = far_reaching(bptt_truncate=None), sentence(7, T)
    assert_same(model.bptt(x, y), model.bptt_one_loop(x, y), 1e-12)
    model.bptt_truncate = T - 1
    assert_same(model.bptt(x, y), model.bptt_one_loop(x, y), 1e-12)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_truncation_keeps_k_transitions(k):
    model, (x, y) = far_reaching(bptt_truncate=k), sentence(7, 30)
    full = model.bptt_one_loop(x, y)
    for other in (k - 1, k + 1, 30):  # there is something to see
        if other >= 0:
            for P in (0, 1):
                gap = windowed(model, x, y, k)[P] - windowed(model, x, y, other)[P]
                assert np.abs(gap).max() > 0.05 * np.abs(full[P]).max()
    assert_same(model.bptt(x, y), windowed(model, x, y, k), 1e-12)
    assert_same(full, windowed(model, x, y, 30), 1e-12)  # and it does not truncate


def test_the_gradient_is_of_the_sum_over_the_words():
    model, (x, y) = far_reaching(bptt_truncate=None), sentence(7, 5)
    dV = np.zeros_like(model.V)
    for t in range(5):  # a sum over the words, and not their mean
        layer = model.forward_propagation(x)[t]
        p = np.exp(layer.mulv) / np.exp(layer.mulv).sum()
        dV += np.outer(p - np.eye(7)[y[t]], layer.s)
    np.testing.assert_allclose(model.bptt(x, y)[2], dV, rtol=1e-12)


def test_without_the_spare_row_dW_is_wrong():
    model, (x, y) = far_reaching(bptt_truncate=None), sentence(7, 6)
    right, wrong = port(model, x, y), port(model, x, y, spare_row=False)
    dW = np.abs(right[1]).max()
    assert np.abs(right[1] - wrong[1]).max() > 0.05 * dW  # the case can tell them apart
    np.testing.assert_array_equal(right[0], wrong[0])  # neither the forward pass
    np.testing.assert_array_equal(right[2], wrong[2])  # nor the other two show it
    assert_same(model.bptt(x, y), right, 1e-12)
    assert_same(model.bptt_one_loop(x, y), right, 1e-12)


def test_a_repeated_word_counts_each_time():
    model = far_reaching(bptt_truncate=None)
    x, y = [2, 2, 2, 5], [2, 2, 5, 1]
    assert_same(model.bptt_one_loop(x, y), port(model, x, y), 1e-12)
    assert_same(model.bptt(x, y), port(model, x, y), 1e-12)


# -------------------------------------------------------------------------- against autograd


def tensors(model):
    return [torch.tensor(P, requires_grad=True) for P in (model.U, model.W, model.V)]


def summed_loss(outputs, y):
    return torch.nn.functional.cross_entropy(outputs, torch.tensor(y), reduction="sum")


@pytest.mark.parametrize("k", [None, 4])
def test_agrees_with_autograd(k):
    """Truncated by cutting the graph for each loss by itself, k transitions before it."""
    model, (x, y) = far_reaching(bptt_truncate=k), sentence(7, 30)
    U, W, V = tensors(model)
    values = [torch.zeros(6, dtype=torch.float64)]
    for word in x:
        values.append(torch.tanh(U[:, word] + W @ values[-1]).detach())
    loss = torch.zeros((), dtype=torch.float64)
    for t in range(30):
        first = 0 if k is None else max(0, t - k)
        s = values[first]
        for i in range(first, t + 1):
            s = torch.tanh(U[:, x[i]] + W @ s)
        loss = loss + summed_loss((V @ s)[None], y[t : t + 1])
    assert loss.item() == pytest.approx(30 * model.calculate_loss(x, y), rel=1e-13)
    expected = [g.numpy() for g in torch.autograd.grad(loss, (U, W, V))]
    assert_same(model.bptt(x, y), expected, 1e-12)


@pytest.mark.parametrize(("nonlinearity", "activation"), [("tanh", Tanh()), ("relu", ReLU())])
@pytest.mark.parametrize("make", [bptt.RNN, torch.nn.RNN], ids=["bptt.RNN", "torch.nn.RNN"])
def test_agrees_with_the_recurrent_modules(make, nonlinearity, activation):
    model, (x, y) = Model(7, 6, None, seed=2, activation=activation), sentence(7, 30)
    rnn = make(7, 6, bias=False, nonlinearity=nonlinearity).double()
    V = torch.tensor(model.V, requires_grad=True)
    rnn.load_state_dict(
        {"weight_ih_l0": torch.tensor(model.U), "weight_hh_l0": torch.tensor(model.W)}
    )
    states, _ = rnn(torch.nn.functional.one_hot(torch.tensor(x), 7).double())
    loss = summed_loss(states @ V.T, y)
    loss.backward()

    layers = model.forward_propagation(x)
    ours = np.array([layer.s for layer in layers])
    np.testing.assert_allclose(ours, states.detach(), rtol=0, atol=1e-10)
    assert 30 * model.calculate_loss(x, y) == pytest.approx(loss.item(), rel=1e-10)
    expected = [P.grad.numpy() for P in (rnn.weight_ih_l0, rnn.weight_hh_l0, V)]
    assert_same(model.bptt(x, y), expected, 1e-10)
    assert_same(model.bptt_one_loop(x, y), expected, 1e-10)


@pytest.mark.parametrize("k", [1, 4, 28])
def test_the_window_is_the_credit_of_every_1_and_reach_k_plus_1(k):
    model, (x, y) = far_reaching(bptt_truncate=k), sentence(7, 30)
    rnn = bptt.RNN(7, 6, bias=False).double()
    V = torch.tensor(model.V, requires_grad=True)
    rnn.load_state_dict(
        {"weight_ih_l0": torch.tensor(model.U), "weight_hh_l0": torch.tensor(model.W)}
    )
    inputs = torch.nn.functional.one_hot(torch.tensor(x), 7).double()
    states, _ = rnn(inputs, credit=bptt.Truncated(every=1, reach=k + 1))
    summed_loss(states @ V.T, y).backward()
    ours = [P.grad.numpy() for P in (rnn.weight_ih_l0, rnn.weight_hh_l0, V)]
    assert_same(model.bptt(x, y), ours, 1e-10)


# ------------------------------------------------------------------------- loss and training


def test_untrained_loss_is_that_of_a_guess():
    model = Model(8000, 100, seed=10)
    assert np.log(8000) == pytest.approx(8.987197, abs=5e-7)
    assert model.calculate_loss(*sentence(8000, 50)) == pytest.approx(np.log(8000), abs=0.01)


def test_loss_of_a_model_without_weights_is_exactly_that_of_a_guess():
    model = Model(8000, 10, seed=0)
    model.V[:] = 0
    assert model.calculate_loss([5, 6], [6, 7]) == pytest.approx(np.log(8000), rel=1e-14)


def test_total_loss_counts_words_not_sentences():
    model = Model(7, 5, seed=0)
    X, Y = zip(sentence(7, 2), sentence(7, 20, seed=1), strict=True)
    short, long = (model.calculate_loss(x, y) for x, y in zip(X, Y, strict=True))
    assert abs(short - long) > 1e-3
    assert model.calculate_total_loss(X, Y) == pytest.approx((2 * short + 20 * long) / 22)


def test_predict():
    model = Model(7, 5, seed=0)
    words = model.predict([3, 1, 4])
    assert words.shape == (3,)
    assert np.issubdtype(words.dtype, np.integer)
    np.testing.assert_array_equal(
        words, [o.mulv.argmax() for o in model.forward_propagation([3, 1, 4])]
    )
    assert len(set(model.predict(np.arange(7)))) > 1


def test_loss_is_finite_with_huge_weights():
    model = Model(7, 5, seed=0)
    model.V *= 1e5
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert 1e3 < model.calculate_loss(*SENTENCE) < 1e6
        assert all(np.isfinite(d).all() for d in model.bptt(*SENTENCE))


def test_initial_weights():
    model, again, other = Model(50, 9, seed=4), Model(50, 9, seed=4), Model(50, 9, seed=5)
    for name, shape, n in (("U", (9, 50), 50), ("W", (9, 9), 9), ("V", (50, 9), 9)):
        P = getattr(model, name)
        assert P.shape == shape
        assert 0.8 / np.sqrt(n) < np.abs(P).max() <= 1 / np.sqrt(n)
        np.testing.assert_array_equal(P, getattr(again, name))
        assert not np.array_equal(P, getattr(other, name))
    assert model.bptt_truncate == 4


def test_one_step_goes_down_the_truncated_gradient():
    model, (x, y) = far_reaching(bptt_truncate=2), sentence(7, 30)
    before, gradients = (model.U.copy(), model.W.copy(), model.V.copy()), model.bptt(x, y)
    loss = model.calculate_loss(x, y)
    model.sgd_step(x, y, 0.01)
    for new, old, d in zip((model.U, model.W, model.V), before, gradients, strict=True):
        np.testing.assert_allclose(new, old - 0.01 * d, rtol=1e-14)
    assert model.calculate_loss(x, y) < loss


CORPUS = [[0, 1, 2, 3, 4, 5], [0, 2, 4, 5], [0, 3, 1, 5]]
X, Y = [s[:-1] for s in CORPUS], [s[1:] for s in CORPUS]


def test_training_lowers_the_loss_and_reports():
    model, lines = Model(6, 16, seed=0), []
    losses = model.train(
        X, Y, learning_rate=0.1, nepoch=60, evaluate_loss_after=20, log=lines.append
    )
    assert [seen for seen, _ in losses] == [0, 60, 120]
    assert losses[0][1] == pytest.approx(np.log(6), abs=0.2)
    assert losses[0][1] > losses[1][1] > losses[2][1]
    assert model.calculate_total_loss(X, Y) < 0.5 * np.log(6)
    assert len(lines) == 3
    assert lines[1] == f"Loss after num_examples_seen=60 epoch=20: {losses[1][1]:f}"


def test_training_prints_unless_told_not_to(capsys):
    Model(6, 4, seed=0).train(X, Y, nepoch=1)
    assert capsys.readouterr().out.startswith("Loss after num_examples_seen=0 epoch=0: 1.")
    Model(6, 4, seed=0).train(X, Y, nepoch=1, log=None)
    assert capsys.readouterr().out == ""


def test_rate_is_halved_each_time_the_loss_has_risen():
    class Scripted(Model):
        """Its losses are given, its rates are written down."""

        def __init__(self, losses):
            super().__init__(6, 4, seed=0)
            self.script, self.rates = iter(losses), []

        def calculate_total_loss(self, X, Y):
            return next(self.script)

        def sgd_step(self, x, y, learning_rate):
            self.rates.append(learning_rate)

    model, lines = Scripted([5, 4, 6, 6, 7, 1]), []
    losses = model.train(
        X, Y, learning_rate=0.8, nepoch=12, evaluate_loss_after=2, log=lines.append
    )
    assert model.rates[:: len(X)] == [0.8] * 4 + [0.4] * 4 + [0.2] * 4  # equal is not a rise
    assert losses == [(0, 5), (6, 4), (12, 6), (18, 6), (24, 7), (30, 1)]
    assert [line for line in lines if "rate" in line] == [
        "The loss has risen: setting learning rate to 0.400000",
        "The loss has risen: setting learning rate to 0.200000",
    ]


def test_rate_is_halved_when_a_real_loss_rises():
    model, lines = Model(6, 8, seed=0), []
    losses = model.train(
        X, Y, learning_rate=4.0, nepoch=10, evaluate_loss_after=1, log=lines.append
    )
    rises = sum(b > a for (_, a), (_, b) in pairwise(losses))
    assert 0 < rises < 9
    last = [line for line in lines if "rate" in line][-1]
    assert float(last.split()[-1]) == pytest.approx(4.0 / 2**rises, abs=1e-6)


def test_training_stops_when_the_loss_is_not_finite():
    model = Model(6, 4, seed=0)
    model.V[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        model.train(X, Y, log=None)


def test_a_gradient_that_is_not_finite_stops_a_step_and_changes_nothing():
    model = Model(6, 4, seed=0)
    model.V[0, 0] = np.inf
    before = [theta.copy() for theta in (model.U, model.W, model.V)]
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="clip, or low"):
        model.sgd_step(*SENTENCE, 0.1)
    for theta, was in zip((model.U, model.W, model.V), before, strict=True):
        np.testing.assert_array_equal(theta, was)


def test_a_clipped_step_goes_the_same_way_and_no_further():
    free, clipped = Model(5, 4, seed=0), Model(5, 4, seed=0, clip=0.5)
    gradients = free.bptt(*SENTENCE)
    norm = np.sqrt(sum((d**2).sum() for d in gradients))
    assert norm > 0.5
    before = [theta.copy() for theta in (free.U, free.W, free.V)]
    free.sgd_step(*SENTENCE, 0.1)
    clipped.sgd_step(*SENTENCE, 0.1)
    for a, b, d, was in zip(
        (free.U, free.W, free.V), (clipped.U, clipped.W, clipped.V), gradients, before, strict=True
    ):
        np.testing.assert_allclose(a, was - 0.1 * d, rtol=0, atol=1e-15)
        np.testing.assert_allclose(b, was - 0.1 * 0.5 / norm * d, rtol=0, atol=1e-15)
    wide = Model(5, 4, seed=0, clip=2 * norm)
    wide.sgd_step(*SENTENCE, 0.1)
    np.testing.assert_array_equal(wide.W, free.W)


def test_clipping_learns_where_the_rate_alone_is_too_large():
    plain, clipped = (Model(6, 8, bptt_truncate=None, seed=0, clip=c) for c in (np.inf, 0.5))
    for model in (plain, clipped):
        model.train(X, Y, learning_rate=4.0, nepoch=20, evaluate_loss_after=100, log=None)
    assert plain.calculate_total_loss(X, Y) > np.log(6)
    assert clipped.calculate_total_loss(X, Y) < 0.8 * np.log(6)


# ----------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0, 5], [1, 2], "word id 5 in x is outside 0 ... 4"),
        ([0, 1], [-1, 2], "word id -1 in y is outside"),
        ([0, 1], [1], "x has 2 words and y 1"),
        ([], [], "x must be one integer or more"),
        ([0.0, 1.0], [1, 2], "not float64"),
        ([[0, 1]], [1, 2], r"not int64 \(1, 2\)"),
        (["a"], [1], "not <U1"),
    ],
)
@pytest.mark.parametrize("method", ["calculate_loss", "bptt", "bptt_one_loop", "gradient_check"])
def test_a_sentence_that_is_none_is_refused_in_one_line(method, x, y, message):
    model = Model(5, 4, bptt_truncate=None, seed=0)
    with pytest.raises(ValueError, match=message) as caught:
        getattr(model, method)(x, y)
    assert "\n" not in str(caught.value)


def test_options_out_of_range_are_refused():
    for bad in ({"word_dim": 0}, {"word_dim": 5, "hidden_dim": 0}):
        with pytest.raises(ValueError, match="must both be at least 1"):
            Model(**bad)
    with pytest.raises(ValueError, match="bptt_truncate=-1 is below 0; use None"):
        Model(5, 4, bptt_truncate=-1)
    for clip in (0, -1, np.nan):
        with pytest.raises(ValueError, match=r"clip=.* must be above 0"):
            Model(5, 4, clip=clip)
    model = Model(6, 4, seed=0)
    for bad in ({"learning_rate": 0}, {"nepoch": -1}, {"evaluate_loss_after": 0}):
        with pytest.raises(ValueError, match="out of range"):
            model.train(X, Y, **bad)
    with pytest.raises(ValueError, match="word id 6 in x is outside"):
        model.predict([6])
    for X_, Y_ in (([], []), (X, Y[:-1])):
        with pytest.raises(ValueError, match="give one of each"):
            model.calculate_total_loss(X_, Y_)


# -------------------------------------------------------------------------------- the terms


@pytest.mark.parametrize("k", [None, 0, 4])
def test_terms_are_the_norms_of_what_bptt_adds_up(k):
    model, (x, y) = far_reaching(bptt_truncate=k), sentence(7, 12)
    C, _ = terms(model, x, y)
    expected = np.zeros((12, 12))
    for (t, i), (_, dW) in C.items():
        expected[t, i] = np.linalg.norm(dW) if k is None or t - i <= k else 0
    found = model.terms(x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    assert (found[:, 0] == 0).all()  # the state before the first is zero
    lags = np.subtract.outer(np.arange(12), np.arange(12))
    kept = (lags >= 0) & (lags <= (12 if k is None else k))
    kept[:, 0] = False
    assert (found[kept] > 1e-3).all()


def test_terms_agree_with_autograd():
    """Each use of W gets a W of its own, and each loss a gradient of its own."""
    model, (x, y) = far_reaching(bptt_truncate=None), sentence(7, 8)
    U, _, V = tensors(model)
    Ws = [torch.tensor(model.W, requires_grad=True) for _ in x]
    s, losses = torch.zeros(6, dtype=torch.float64), []
    for t, word in enumerate(x):
        s = torch.tanh(U[:, word] + Ws[t] @ s)
        losses.append(summed_loss((V @ s)[None], y[t : t + 1]))
    expected = np.zeros((8, 8))
    for t, loss in enumerate(losses):
        for i, g in enumerate(torch.autograd.grad(loss, Ws[: t + 1], retain_graph=True)):
            expected[t, i] = g.norm().item()
    np.testing.assert_allclose(model.terms(x, y), expected, rtol=1e-10, atol=0)
