"""The textbook's network on several sentences at once: values, numeric slopes, terms. NumPy only.

Each sentence has weights of its own, so that it gives equations of its own; all arrays begin with
the sentence, [N, ...]. The terms C[t, s] of every parameter can be taken with a mistake in them,
which :class:`Choice` describes; without one they are those of the definition::

    δ[t, t] = f_t ⊙ Vᵀ e_t        δ[t, s] = f_s ⊙ Wᵀ δ[t, s + 1]        f_s = 1 - s_s²
    C_U[t, s] = δ[t, s] x_sᵀ      C_W[t, s] = δ[t, s] s_{s-1}ᵀ      C_V[t, t] = e_t s_tᵀ
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.intp]

Scores = Literal["right", "target not subtracted", "inputs as targets", "softmax forgotten"]
Factor = Literal[
    "right", "missing", "step before", "step after", "1 - s", "s (1 - s)", "1 - a²", "tanh twice"
]
Where = Literal["everywhere", "entry", "way back"]
State = Literal["right", "one later", "one earlier", "no spare row"]


@dataclass(frozen=True)
class Choice:
    """How the terms are taken; the defaults are right."""

    scores: Scores = "right"
    """e_t, the gradient at the scores o_t."""
    factor: Factor = "right"
    """f_s, the derivative of tanh."""
    where: Where = "everywhere"
    """Where a wrong factor is: at s = t, where a loss enters, or at s < t."""
    carried_before_factor: bool = False
    """Whether Wᵀ is applied to the gradient at the state, before f_s."""
    transposed_weight: bool = False
    """Whether W stands in place of Wᵀ."""
    state: State = "right"
    """The state that dW (s_{s-1}) or dV (s_t) is taken with."""
    words: Literal["right", "first", "last"] = "right"
    """Which of the uses of a repeated word counts in dU."""
    transposed_result: bool = False
    """Whether dW is the transpose of what it should be."""


RIGHT = Choice()


@dataclass(frozen=True)
class Exercise:
    """N sentences, each with weights of its own."""

    x: Ids
    """The words, [N, T]."""
    y: Ids
    """The targets, [N, T]."""
    weights: dict[str, Floats]
    """U [N, H, C], W [N, H, H], V [N, C, H], and with a bias b [N, H] and c [N, C]."""

    @classmethod
    def draw(
        cls, count: int, steps: int, word_dim: int, hidden_dim: int, bias: bool, seed: int
    ) -> Exercise:
        """Draw sentences through which gradients come back: W is orthogonal, times 1.2.

        The first N sentences of a seed are the same whatever the count.
        """
        drawn = [
            _draw_one(np.random.default_rng([seed, n]), steps, word_dim, hidden_dim, bias)
            for n in range(count)
        ]
        x, y, weights = zip(*drawn, strict=True)
        return cls(
            np.stack(x), np.stack(y), {k: np.stack([w[k] for w in weights]) for k in weights[0]}
        )

    @cached_property
    def states(self) -> tuple[Floats, Floats]:
        """The inputs a of tanh [N, T, H], and s [N, T + 1, H], whose last row is the zero state."""
        U, W = self.weights["U"], self.weights["W"]
        N, T = self.x.shape
        rows = np.arange(N)
        a = np.zeros((N, T, W.shape[1]))
        s = np.zeros((N, T + 1, W.shape[1]))
        for t in range(T):
            a[:, t] = U[rows, :, self.x[:, t]] + np.einsum("nij,nj->ni", W, s[:, t - 1])
            a[:, t] += self.weights.get("b", 0.0)
            s[:, t] = np.tanh(a[:, t])
        return a, s

    def scores(self, s: Floats) -> Floats:
        """Return o = V s + c of all steps, [N, T, C]."""
        o = np.einsum("nci,nti->ntc", self.weights["V"], s[:, :-1])
        return np.asarray(o + self.weights["c"][:, None] if "c" in self.weights else o)

    def losses(self) -> Floats:
        """Return the loss of each sentence, summed over its words, [N]."""
        o = self.scores(self.states[1])
        m = o.max(-1, keepdims=True)
        of_target = np.take_along_axis(o - m, self.y[..., None], 2)[..., 0]
        return np.asarray((np.log(np.exp(o - m).sum(-1)) - of_target).sum(1))

    def slopes(self, name: str, h: float = 1e-5) -> Floats:
        """Return (L(θ + h) - L(θ - h)) / 2h for every entry θ of a parameter, in its shape.

        All entries of a row are moved side by side, each in a copy of the sentences.
        """
        theta = self.weights[name]
        N, width = len(theta), theta[0, 0].size
        moves = np.repeat(np.eye(width), 2, 0).reshape(2 * width, *theta.shape[2:])
        moves[1::2] *= -1
        found = np.zeros_like(theta)
        copied = {key: np.repeat(w, 2 * width, 0) for key, w in self.weights.items()}
        x, y = np.repeat(self.x, 2 * width, 0), np.repeat(self.y, 2 * width, 0)
        for row in range(theta.shape[1]):
            moved = copied[name].copy()
            moved[:, row] += h * np.tile(moves, (N, *(1,) * (moves.ndim - 1)))
            losses = Exercise(x, y, copied | {name: moved}).losses().reshape(N, width, 2)
            found[:, row] = ((losses[..., 0] - losses[..., 1]) / (2 * h)).reshape(theta[:, 0].shape)
        return found

    def terms(self, choice: Choice = RIGHT, names: tuple[str, ...] = ()) -> dict[str, Floats]:
        """Return C[t, s] of parameters, [N, T, T, ...]; all that do not depend on one are 0.

        Args:
            choice: the mistake in them.
            names: the parameters; all by default.
        """
        a, s = self.states
        e = self._at_scores(choice, s)
        delta = self._at_states(choice, e, a, s)
        T, found = self.x.shape[1], dict[str, Floats]()
        for name in names or tuple(self.weights):
            if name == "U":
                C = np.einsum("ntsi,nsc->ntsic", delta, self._words(choice))
            elif name == "W":
                C = np.einsum("ntsi,nsj->ntsij", delta, _before(choice, s))
                C = C.swapaxes(3, 4) if choice.transposed_result else C
            elif name == "b":
                C = delta
            else:
                C = np.zeros((len(e), T, T, *self.weights[name].shape[1:]))
                own = e
                if name == "V":
                    of = _earlier(s) if choice.state == "one earlier" else s[:, :-1]
                    own = np.einsum("ntc,nti->ntci", e, of)
                C[:, range(T), range(T)] = own
            found[name] = C
        return found

    def _at_scores(self, choice: Choice, s: Floats) -> Floats:
        """Return e, [N, T, C]."""
        o = self.scores(s)
        e: Floats = np.exp(o - o.max(-1, keepdims=True))
        e /= e.sum(-1, keepdims=True)
        if choice.scores == "softmax forgotten":
            e = o.copy()
        if choice.scores != "target not subtracted":
            at = self.x if choice.scores == "inputs as targets" else self.y
            n, t = np.indices(at.shape)
            e[n, t, at] -= 1
        return e

    def _at_states(self, choice: Choice, e: Floats, a: Floats, s: Floats) -> Floats:
        """Return δ[t, s], the gradient of loss t at a_s, [N, T, T, H]."""
        W, T = self.weights["W"], e.shape[1]
        back = W.swapaxes(1, 2) if not choice.transposed_weight else W
        right, other = _factor("right", a, s), _factor(choice.factor, a, s)
        delta = np.zeros((len(e), T, T, W.shape[1]))
        at_state = np.einsum("nci,ntc->nti", self.weights["V"], e)
        for lag in range(T):  # the losses lag ... T - 1, at the steps 0 ... T - 1 - lag
            is_wrong = choice.where in ("everywhere", "way back" if lag else "entry")
            own = at_state * (other if is_wrong else right)[:, : T - lag]
            steps = np.arange(T - lag)
            delta[:, steps + lag, steps] = own
            carried = at_state if choice.carried_before_factor else own
            at_state = np.einsum("nij,ntj->nti", back, carried[:, 1:])
        return delta

    def _words(self, choice: Choice) -> Floats:
        """Return the one-hot rows of x, [N, T, C]; of a repeated word one alone, if so chosen."""
        hot: Floats = np.eye(self.weights["U"].shape[2])[self.x]
        if choice.words != "right":
            T = self.x.shape[1]
            for ids, rows in zip(self.x, hot, strict=True):
                ordered = ids if choice.words == "first" else ids[::-1]
                _, at = np.unique(ordered, return_index=True)
                kept = at if choice.words == "first" else T - 1 - at
                rows[np.setdiff1d(np.arange(T), kept)] = 0
        return hot


def _draw_one(
    rng: np.random.Generator, T: int, C: int, H: int, bias: bool
) -> tuple[Ids, Ids, dict[str, Floats]]:
    x = rng.integers(0, C, T)
    x[T - 1] = x[rng.integers(0, T - 1)]  # a word that is repeated
    w = {
        "U": 0.5 * rng.standard_normal((H, C)),
        "W": 1.2 * np.linalg.qr(rng.standard_normal((H, H)))[0],
        "V": rng.standard_normal((C, H)),
    }
    if bias:
        w |= {"b": 0.3 * rng.standard_normal(H), "c": 0.3 * rng.standard_normal(C)}
    return x, rng.integers(0, C, T), w


def _factor(kind: Factor, a: Floats, s: Floats) -> Floats:
    """Return what stands in place of tanh's derivative, [N, T, H]."""
    own = s[:, :-1]
    if kind == "missing":
        return np.ones_like(own)
    if kind == "s (1 - s)":
        return own * (1 - own)
    if kind == "1 - s":
        return 1 - own
    squared = {
        "right": own,
        "step before": _earlier(s),
        "step after": s[:, 1:],
        "1 - a²": a,
        "tanh twice": np.tanh(own),
    }[kind]
    return 1 - squared**2


def _before(choice: Choice, s: Floats) -> Floats:
    """Return the state that dW is taken with at each step, [N, T, H]: s_{s-1} if right."""
    if choice.state == "one later":
        return s[:, :-1]
    before = _earlier(s)
    if choice.state == "no spare row":
        before[:, 0] = s[:, -2]
    return before


def _earlier(s: Floats) -> Floats:
    """Return s_{t-1} for each t, [N, T, H]; before the first is the spare row."""
    return np.roll(s, 1, 1)[:, :-1]
