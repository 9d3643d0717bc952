"""The same layer as JAX has it: a jitted scan over the steps, and its derivative.

JAX is imported when it is asked for, and no earlier; nothing else of bptt needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bptt._src.bench.timing import timed


def load(threads: int) -> tuple[str | None, str | None]:
    """Import JAX on the processor, with as many threads as everyone has.

    Args:
        threads: for its own pool, which is made now and keeps its size.

    Returns:
        Its version, or None; and then why it does not take part.
    """
    if importlib.util.find_spec("jax") is None:
        return None, "JAX is not installed"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(threads)  # how XLA sizes its pools
    try:
        jax: Any = importlib.import_module("jax")
        if jax.default_backend() != "cpu":
            return None, f"JAX runs on {jax.default_backend()} here, not on the processor"
    except (ImportError, RuntimeError) as e:
        return None, f"JAX cannot be used: {' '.join(str(e).split())}"
    finally:
        if before is None:
            del os.environ["NPROC"]
        else:
            os.environ["NPROC"] = before
    return str(jax.__version__), None


class ScanLayer:
    """A scan over a cell as a contender.

    Args:
        cell: ``"rnn"`` (tanh), ``"gru"`` or ``"lstm"``.
        weights: torch.nn's ``weight_ih`` [G·H, I], ``weight_hh`` [G·H, H] and two biases [G·H].
        x: [T, B, I].
        d_y: the gradient of the outputs, [T, B, H].
        around: what else training computes, before each step; not timed.
    """

    def __init__(
        self, cell: str, weights: list[Tensor], x: Tensor, d_y: Tensor, around: Callable[[], object]
    ) -> None:
        self.jax: Any = importlib.import_module("jax")
        self.around = around
        to_jax = self.jax.numpy.asarray
        self.arguments = ([to_jax(w.numpy()) for w in weights], to_jax(x.numpy()))
        self.d_y = to_jax(d_y.numpy())
        self.step = self.jax.jit(_forward_and_backward(self.jax, cell))

    def __call__(self) -> float:
        """Take a step."""
        self.around()
        return timed(self._step)

    def found(self) -> list[Tensor]:
        """Return what the contenders are compared by."""
        y, (weights, x) = self._step()
        return [torch.from_numpy(np.array(a)) for a in (y, x, *weights)]

    def _step(self) -> Any:
        return self.jax.block_until_ready(self.step(*self.arguments, self.d_y))


def _forward_and_backward(jax: Any, cell: str) -> Callable[..., Any]:
    step, states = _CELLS[cell]

    def layer(weights: Any, x: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = weights
        zero = jax.numpy.zeros((x.shape[1], w_hh.shape[1]))
        from_input = x @ w_ih.T + b_ih  # of all steps at once, as it does not wait for the state

        def body(state: Any, given: Any) -> Any:
            state = step(jax, given, state[0] @ w_hh.T + b_hh, state)
            return state, state[0]

        return jax.lax.scan(body, (zero,) * states, from_input)[1]

    def both(weights: Any, x: Any, d_y: Any) -> Any:
        y, back = jax.vjp(layer, weights, x)
        return y, back(d_y)

    return both


def _elman(jax: Any, given: Any, recurrent: Any, state: Any) -> Any:
    return (jax.numpy.tanh(given + recurrent),)


def _gru(jax: Any, given: Any, recurrent: Any, state: Any) -> Any:
    r_x, z_x, n_x = jax.numpy.split(given, 3, axis=-1)
    r_h, z_h, n_h = jax.numpy.split(recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
    n = jax.numpy.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * state[0],)


def _lstm(jax: Any, given: Any, recurrent: Any, state: Any) -> Any:
    i, f, g, o = jax.numpy.split(given + recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    return (jax.nn.sigmoid(o) * jax.numpy.tanh(c), c)


_CELLS: dict[str, tuple[Callable[..., Any], int]] = {
    "rnn": (_elman, 1),
    "gru": (_gru, 1),
    "lstm": (_lstm, 2),
}
"""A step, and how many tensors its state has."""
