"""The nodes of the computation graph: each knows its value and its own derivative, nothing else.

``forward(inputs)`` is the value z; ``backward(inputs, dz)`` takes the loss's gradient dz = ∂L/∂z
to its gradient at each input. Gates keep nothing: ``RNNLayer`` keeps what flowed through them.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class MultiplyGate:
    """z = W x, for W of shape [m, n], x of shape [n] and z of shape [m]."""

    def forward(self, W: Floats, x: Floats) -> Floats:
        return W @ x

    def backward(self, W: Floats, x: Floats, dz: Floats) -> tuple[Floats, Floats]:
        """Return (dW, dx) = (dz xᵀ, Wᵀ dz)."""
        return np.outer(dz, x), W.T @ dz


class AddGate:
    """z = x1 + x2, of one shape: nothing is broadcast."""

    def forward(self, x1: Floats, x2: Floats) -> Floats:
        return x1 + x2

    def backward(self, x1: Floats, x2: Floats, dz: Floats) -> tuple[Floats, Floats]:
        """Return (dx1, dx2): a sum hands its gradient on to both terms, to each its own copy."""
        return dz.copy(), dz.copy()


class Sigmoid:
    """σ(x) = 1 / (1 + e^-x), with derivative σ (1 - σ), which is 1/4 at x = 0 and less elsewhere.

    >>> Sigmoid().forward(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    def forward(self, x: Floats) -> Floats:
        z = np.exp(-np.abs(x))  # never overflows, as e^-x does below -709
        return np.where(x >= 0, 1.0, z) / (1.0 + z)

    def backward(self, x: Floats, top_diff: Floats) -> Floats:
        s = self.forward(x)
        return s * (1.0 - s) * top_diff


class Tanh:
    """tanh(x), with derivative 1 - tanh², which is 1 at x = 0 and less elsewhere."""

    def forward(self, x: Floats) -> Floats:
        return np.tanh(x)

    def backward(self, x: Floats, top_diff: Floats) -> Floats:
        return (1.0 - np.tanh(x) ** 2) * top_diff


class ReLU:
    """max(x, 0), with derivative 1 above zero and 0 elsewhere (at zero too, by choice)."""

    def forward(self, x: Floats) -> Floats:
        return np.maximum(x, 0.0)

    def backward(self, x: Floats, top_diff: Floats) -> Floats:
        return np.where(x > 0, top_diff, 0.0)


Activation = Sigmoid | Tanh | ReLU


class Softmax:
    """p = e^x / Σ e^x over scores x of shape [C], and the cross-entropy -log p_y of word y.

    The greatest score is subtracted before anything is exponentiated. It cancels in the quotient,
    and the greatest exponential is then 1: no overflow, and no sum that underflows to zero.

    >>> Softmax().loss(np.array([1000.0, -1000.0]), 1)
    2000.0
    """

    def forward(self, x: Floats) -> Floats:
        z = np.exp(x - x.max())
        return np.asarray(z / z.sum())

    def backward(self, x: Floats, dp: Floats) -> Floats:
        """Return (diag(p) - p pᵀ) dp, without forming the [C, C] Jacobian."""
        p = self.forward(x)
        return p * (dp - p @ dp)

    def loss(self, x: Floats, y: int) -> float:
        """Return -log p_y in nats as log Σ e^x - x_y, finite also where p_y underflows to 0."""
        m = x.max()
        return float(m + np.log(np.exp(x - m).sum()) - x[y])

    def diff(self, x: Floats, y: int) -> Floats:
        """Return ∂(-log p_y)/∂x = p - onehot(y): backward of dp = -onehot(y) / p_y, simplified."""
        p = self.forward(x)
        p[y] -= 1.0
        return p
