"""The recurrent language model: forward, backpropagation through time in two forms, training."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt.textbook.gates import Activation, Floats, Softmax
from bptt.textbook.layer import RNNLayer, tanh

softmax = Softmax()


class Model:
    """A recurrent network that predicts each next word of a sentence from the words so far.

    A sentence is two lists of T word ids, the inputs x and the targets y, as a rule y = x shifted
    by one. Every sentence starts from the zero state.

    Args:
        word_dim: the number of words C.
        hidden_dim: the number of hidden units H.
        bptt_truncate: over how many transitions ``bptt`` takes a loss back in time: k transitions
            are k + 1 cells. None, like anything from T - 1 on, is the full gradient.
        seed: of the initial weights, uniform in ±1/√n for n incoming connections.
        activation: the nonlinearity φ of the hidden units.
        clip: the norm of dU, dW and dV together to which a larger gradient is scaled down.

    Attributes:
        U: the input weights, of shape [H, C].
        W: the recurrent weights, of shape [H, H].
        V: the output weights, of shape [C, H].

    Raises:
        ValueError: if a size is below 1 or bptt_truncate below 0; by all methods, if a sentence is
            empty, holds an id outside 0 ... C - 1, or has not one target for each word.
    """

    def __init__(
        self,
        word_dim: int,
        hidden_dim: int = 100,
        bptt_truncate: int | None = 4,
        seed: int | None = None,
        activation: Activation = tanh,
        clip: float = np.inf,
    ) -> None:
        if word_dim < 1 or hidden_dim < 1:
            raise ValueError(f"{word_dim=} and {hidden_dim=} must both be at least 1")
        if bptt_truncate is not None and bptt_truncate < 0:
            raise ValueError(f"{bptt_truncate=} is below 0; use None for no truncation")
        if not clip > 0:
            raise ValueError(f"{clip=} must be above 0")
        self.word_dim, self.hidden_dim = word_dim, hidden_dim
        self.bptt_truncate, self.activation, self.clip = bptt_truncate, activation, clip
        uniform, u, w = np.random.default_rng(seed).uniform, word_dim**-0.5, hidden_dim**-0.5
        self.U: Floats = uniform(-u, u, (hidden_dim, word_dim))
        self.W: Floats = uniform(-w, w, (hidden_dim, hidden_dim))
        self.V: Floats = uniform(-w, w, (word_dim, hidden_dim))

    def forward_propagation(self, x: ArrayLike) -> list[RNNLayer]:
        """Return the T steps of the sentence: layer t holds the state s and the output mulv."""
        layers, prev_s = [], np.zeros(self.hidden_dim)
        for word in self._words("x", x):
            layer = RNNLayer(self.activation)
            layer.forward(word, prev_s, self.U, self.W, self.V)
            layers.append(layer)
            prev_s = layer.s
        return layers

    def predict(self, x: ArrayLike) -> NDArray[np.intp]:
        """Return the most probable next word after each word of x, of shape [T]."""
        return np.array([layer.mulv.argmax() for layer in self.forward_propagation(x)])

    def calculate_loss(self, x: ArrayLike, y: ArrayLike) -> float:
        """Return the mean cross-entropy over the words of one sentence, in nats per word."""
        x, y = self._sentence(x, y)
        layers = self.forward_propagation(x)
        return sum(softmax.loss(layers[t].mulv, y[t]) for t in range(len(y))) / len(y)

    def calculate_total_loss(self, X: Sequence[ArrayLike], Y: Sequence[ArrayLike]) -> float:
        """Return the mean cross-entropy over the words of all sentences, in nats per word.

        Each word counts once, as in WildML's tutorial, so that e^loss is the perplexity. (The mean
        of the sentences' means, as in pangolulu's, favours the words of short sentences.)
        """
        if len(X) != len(Y) or len(Y) == 0:
            raise ValueError(f"{len(X)} inputs and {len(Y)} targets: give one of each, or more")
        losses = [self.calculate_loss(x, y) for x, y in zip(X, Y, strict=True)]
        return float(np.average(losses, weights=[np.size(y) for y in Y]))

    def bptt(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """Return (dU, dW, dV), the gradient of the loss summed over the words, by two loops.

        The outer loop takes each loss by itself, the inner loop carries it back over at most
        bptt_truncate transitions: T (k + 1) steps back, or T (T + 1) / 2 without truncation. Being
        of the sum, the gradient is T times that of ``calculate_loss``, as in the tutorials.
        """
        x, y = self._sentence(x, y)
        layers = self.forward_propagation(x)
        dU, dW, dV = np.zeros_like(self.U), np.zeros_like(self.W), np.zeros_like(self.V)
        k = len(x) if self.bptt_truncate is None else self.bptt_truncate
        for t in range(len(x)):
            e = softmax.diff(layers[t].mulv, y[t])
            ds, dV_t = layers[t].backward_output(self.V, e)  # loss t enters at step t alone
            dV += dV_t
            for i in range(t, max(t - k - 1, -1), -1):  # k transitions, k + 1 cells
                ds, du, dW_i = layers[i].backward(self.W, ds)
                dU[:, x[i]] += du
                dW += dW_i
        return dU, dW, dV

    def bptt_one_loop(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """Return (dU, dW, dV), the full gradient, by one loop: this never truncates.

        All later losses come back along one path, so their gradients are added up on the way, and
        none can be stopped by itself; bptt_truncate is ``bptt``'s alone::

            e_t = softmax(o_t) - onehot(y_t)     δ_t = φ'(a_t) ⊙ (Vᵀ e_t + Wᵀ δ_{t+1}),  δ_T = 0
            dU = Σ δ_t onehot(x_t)ᵀ              dW = Σ δ_t s_{t-1}ᵀ       dV = Σ e_t s_tᵀ
        """
        x, y = self._sentence(x, y)
        T, layers = len(x), self.forward_propagation(x)
        s = np.zeros((T + 1, self.hidden_dim))  # a spare row: s[-1] is the zero state
        s[:T] = [layer.s for layer in layers]
        e = np.array([softmax.diff(layers[t].mulv, y[t]) for t in range(T)])  # [T, C]
        delta = np.zeros((T + 1, self.hidden_dim))  # a spare row: delta[T] comes after the end
        for t in reversed(range(T)):
            ds = self.V.T @ e[t] + self.W.T @ delta[t + 1]
            delta[t] = self.activation.backward(layers[t].add, ds)
        dU = np.zeros_like(self.U)
        np.add.at(dU.T, x, delta[:T])  # dU.T[x] += ... would count a repeated word once
        return dU, delta[:T].T @ s[np.arange(T) - 1], e.T @ s[:T]

    def terms(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return ‖C[t, i]‖, of shape [T, T]: the norm of each term whose sum is the dW of ``bptt``.

        C[t, i] = δ_{t,i} s_{i-1}ᵀ, of shape [H, H], is what loss t says about W as step i used it.
        Zero are column 0, as s_{-1} = 0, and what is left out: t - i < 0 or > bptt_truncate.
        """
        x, y = self._sentence(x, y)
        layers, norms = self.forward_propagation(x), np.zeros((len(x), len(x)))
        k = len(x) if self.bptt_truncate is None else self.bptt_truncate
        for t in range(len(x)):
            ds, _ = layers[t].backward_output(self.V, softmax.diff(layers[t].mulv, y[t]))
            for i in range(t, max(t - k - 1, -1), -1):
                ds, _, C = layers[i].backward(self.W, ds)
                norms[t, i] = np.linalg.norm(C)
        return norms

    def sgd_step(self, x: ArrayLike, y: ArrayLike, learning_rate: float) -> None:
        """Take one step of gradient descent on one sentence, along ``bptt``, clipped."""
        dU, dW, dV = self.bptt(x, y)
        norm = np.linalg.norm([np.linalg.norm(d) for d in (dU, dW, dV)])
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm}: clip, or lower {learning_rate=}")
        if norm > self.clip:
            learning_rate *= self.clip / norm
        self.U -= learning_rate * dU
        self.W -= learning_rate * dW
        self.V -= learning_rate * dV

    def train(
        self,
        X: Sequence[ArrayLike],
        Y: Sequence[ArrayLike],
        learning_rate: float = 0.005,
        nepoch: int = 100,
        evaluate_loss_after: int = 5,
        log: Callable[[str], object] | None = print,
    ) -> list[tuple[int, float]]:
        """Take a step on each sentence in turn, nepoch times; halve the rate when the loss rises.

        The loss is evaluated before the first epoch and then every evaluate_loss_after epochs, not
        after the last one. Each line of the report is given to log, if there is one.

        Returns:
            (sentences seen so far, ``calculate_total_loss``) of each evaluation.

        Raises:
            FloatingPointError: if the loss or a gradient is no longer a finite number.
        """
        if learning_rate <= 0 or nepoch < 0 or evaluate_loss_after < 1:
            raise ValueError(f"out of range: {learning_rate=}, {nepoch=} or {evaluate_loss_after=}")
        say, losses = log or (lambda line: None), list[tuple[int, float]]()
        for epoch in range(nepoch):
            if epoch % evaluate_loss_after == 0:
                seen, loss = epoch * len(Y), self.calculate_total_loss(X, Y)
                losses.append((seen, loss))
                say(f"Loss after num_examples_seen={seen} epoch={epoch}: {loss:f}")
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss}; use a lower {learning_rate=}")
                if len(losses) > 1 and loss > losses[-2][1]:
                    learning_rate *= 0.5
                    say(f"The loss has risen: setting learning rate to {learning_rate:f}")
            for x, y in zip(X, Y, strict=True):
                self.sgd_step(x, y, learning_rate)
        return losses

    def gradient_check(
        self, x: ArrayLike, y: ArrayLike, h: float = 1e-4, tolerance: float = 1e-6
    ) -> dict[str, float]:
        """Compare ``bptt`` with (L(θ + h) - L(θ - h)) / 2h for every entry θ of U, W and V.

        An entry's error is relative to the sum of the two magnitudes, or to the mean magnitude of
        that parameter's gradient if it is greater: in small entries differences are mostly noise.

        Returns:
            The greatest error in each parameter, by name.

        Raises:
            AssertionError: if that is above the tolerance, or not a number.
            ValueError: if the model truncates here, as then bptt is not the gradient of L.
        """
        x, y = self._sentence(x, y)
        if self.bptt_truncate is not None and self.bptt_truncate < len(x) - 1:
            raise ValueError(f"{self.bptt_truncate=} truncates {len(x)} words; use None")
        greatest: dict[str, float] = {}
        for name, analytic in zip("UWV", self.bptt(x, y), strict=True):
            theta, numeric = getattr(self, name), np.zeros_like(analytic)
            for i in np.ndindex(*theta.shape):
                value = theta[i]
                for sign in (1, -1):
                    theta[i] = value + sign * h
                    numeric[i] += sign * self.calculate_loss(x, y)
                theta[i] = value
            numeric *= len(x) / (2 * h)  # the loss is a mean, the gradient that of the sum
            size = np.maximum(abs(analytic) + abs(numeric), abs(analytic).mean())
            error = abs(analytic - numeric) / np.where(size > 0, size, 1.0)
            greatest[name] = float(error.max())
            if not greatest[name] <= tolerance:
                i = divmod(int(error.argmax()), error.shape[1])
                raise AssertionError(f"d{name} at {i}: bptt {analytic[i]:g}, slope {numeric[i]:g}")
        return greatest

    def _sentence(self, x: ArrayLike, y: ArrayLike) -> tuple[list[int], list[int]]:
        words, targets = self._words("x", x), self._words("y", y)
        if len(words) != len(targets):
            raise ValueError(f"x has {len(words)} words and y {len(targets)}; give one target each")
        return words, targets

    def _words(self, name: str, ids: ArrayLike) -> list[int]:
        words = np.asarray(ids)
        if words.ndim != 1 or words.size == 0 or words.dtype.kind not in "iu":
            raise ValueError(f"{name} must be one integer or more, not {words.dtype} {words.shape}")
        for bad in words[(words < 0) | (words >= self.word_dim)][:1]:
            raise ValueError(f"word id {bad} in {name} is outside 0 ... {self.word_dim - 1}")
        return [int(word) for word in words]
