"""Every gate against finite differences, and at arguments where the plain formulas overflow."""

import numpy as np
import pytest

from bptt.textbook import AddGate, MultiplyGate, ReLU, RNNLayer, Sigmoid, Softmax, Tanh

rng = np.random.default_rng(0)


def differences(f, x, dz, h=1e-5):
    """dzᵀ ∂f/∂x by central differences, one entry of x at a time."""
    dx = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = np.sum(dz * (f(x + step) - f(x - step))) / (2 * h)
    return dx


def test_multiply():
    W, x, dz = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=3)
    gate = MultiplyGate()
    dW, dx = gate.backward(W, x, dz)
    np.testing.assert_allclose(dW, differences(lambda W: gate.forward(W, x), W, dz), atol=1e-9)
    np.testing.assert_allclose(dx, differences(lambda x: gate.forward(W, x), x, dz), atol=1e-9)


def test_add():
    x1, x2, dz = rng.normal(size=(3, 4))
    gate = AddGate()
    dx1, dx2 = gate.backward(x1, x2, dz)
    np.testing.assert_allclose(dx1, differences(lambda x: gate.forward(x, x2), x1, dz), atol=1e-9)
    np.testing.assert_allclose(dx2, differences(lambda x: gate.forward(x1, x), x2, dz), atol=1e-9)
    assert not np.shares_memory(dx1, dx2)
    assert not np.shares_memory(dx1, dz)


@pytest.mark.parametrize(
    "gate", [Sigmoid(), Tanh(), ReLU(), Softmax()], ids=lambda g: type(g).__name__
)
def test_elementwise_and_softmax(gate):
    x = np.array([-3.0, -0.7, -0.01, 0.02, 0.5, 2.0])  # no kink of the ReLU within the step
    dz = rng.normal(size=x.shape)
    np.testing.assert_allclose(gate.backward(x, dz), differences(gate.forward, x, dz), atol=1e-9)


def test_softmax_diff_is_the_gradient_of_its_loss_and_its_backward():
    x, y, gate = rng.normal(size=5), 3, Softmax()
    diff = gate.diff(x, y)
    np.testing.assert_allclose(diff, differences(lambda x: gate.loss(x, y), x, 1.0), atol=1e-9)
    dp = np.zeros(5)
    dp[y] = -1 / gate.forward(x)[y]
    np.testing.assert_allclose(diff, gate.backward(x, dp), atol=1e-12)
    assert gate.loss(x, y) == pytest.approx(-np.log(gate.forward(x)[y]), rel=1e-14)


@pytest.mark.parametrize("x", [[1000.0, -1000.0], [-1000.0, -1000.0], [1000.0, 1000.0]])
def test_softmax_is_finite_at_large_scores(x):
    x, gate = np.array(x), Softmax()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        p, loss, diff = gate.forward(x), gate.loss(x, 1), gate.diff(x, 1)
    assert p.sum() == pytest.approx(1)
    assert loss == pytest.approx(2000 if x[0] > x[1] else np.log(2))
    np.testing.assert_allclose(diff, p - [0, 1])


def test_sigmoid_is_exact_in_both_tails():
    x = np.array([-1000.0, -100.0, 0.0, 100.0, 1000.0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        s, ds = Sigmoid().forward(x), Sigmoid().backward(x, np.ones(5))
    np.testing.assert_allclose(s, [0, np.exp(-100), 0.5, 1, 1], rtol=1e-14)
    assert np.isfinite(ds).all()


def test_greatest_slopes():
    x = np.linspace(-5, 5, 1001)  # 0 is among them
    assert Sigmoid().backward(x, np.ones_like(x)).max() == 0.25
    assert Tanh().backward(x, np.ones_like(x)).max() == 1.0


@pytest.mark.parametrize("activation", [Sigmoid(), Tanh(), ReLU()], ids=lambda g: type(g).__name__)
def test_layer(activation):
    H, C, x = 3, 5, 2
    U, W, V = rng.normal(size=(H, C)), rng.normal(size=(H, H)), rng.normal(size=(C, H))
    prev_s, ds, dmulv = rng.normal(size=H), rng.normal(size=H), rng.normal(size=C)

    def s(prev_s, U, W):
        return activation.forward(U @ np.eye(C)[x] + W @ prev_s)  # with the one-hot column formed

    layer = RNNLayer(activation)
    layer.forward(x, prev_s, U, W, V)
    np.testing.assert_allclose(layer.s, s(prev_s, U, W), rtol=1e-14)
    np.testing.assert_allclose(layer.mulv, V @ s(prev_s, U, W), rtol=1e-14)

    dprev_s, du, dW = layer.backward(W, ds)
    dU = np.outer(du, np.eye(C)[x])
    near = {"atol": 1e-8}
    np.testing.assert_allclose(dprev_s, differences(lambda p: s(p, U, W), prev_s, ds), **near)
    np.testing.assert_allclose(dU, differences(lambda U: s(prev_s, U, W), U, ds), **near)
    np.testing.assert_allclose(dW, differences(lambda W: s(prev_s, U, W), W, ds), **near)

    ds, dV = layer.backward_output(V, dmulv)
    np.testing.assert_allclose(ds, differences(lambda s: V @ s, layer.s, dmulv), **near)
    np.testing.assert_allclose(dV, differences(lambda V: V @ layer.s, V, dmulv), **near)
