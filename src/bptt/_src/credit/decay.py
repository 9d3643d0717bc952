"""Decay of the gradient of one step's loss on its way back, for any module, and its fit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt._src.layout import Layout
from bptt._src.pytree import check_leaves, is_float, leaves_of, map_tensors
from bptt._src.unroll.buffers import Buffers, modules_in
from bptt._src.unroll.calls import pair

SMALLEST = 1e-30
"""Norms below this are not looked at: float32 has few digits left there, or none."""


class Decay(NamedTuple):
    """The result of a probe; k counts the steps back, from 0 on."""

    norms: NDArray[np.float64]
    """φ_k = ‖∂L_t/∂h_{t-k}‖ for each sequence, [B, lags]; the state's tensors taken together."""
    sums: NDArray[np.float64]
    """‖E Σ_{j≤k} ∂L_t/∂h_{t-j}‖, the mean over the sequences, [lags]."""


def measure_decay(
    module: Any,
    inputs: Any,
    loss: Any,
    state: Any = None,
    *,
    lags: int,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> Decay:
    """Measure ‖∂L_t/∂h_{t-k}‖ for the loss of the last step.

    The module is run step by step over the last steps; the steps before only warm the state up.
    The state is visible only where it enters a step, so the gradient at lag 0, at h_t itself, is
    taken to be that at lag 1.

    Args:
        module: any callable ``(inputs [T, B, ...], state) -> (outputs [T, B, ...], state)``.
        inputs: [T, B, ...], or a pytree of such.
        loss: ``outputs [1, B, ...] of the last step -> scalar``, a sum or mean over the sequences.
        state: the initial state; None if the module makes its own.
        lags: the number of lags to measure, from 0 on; fewer if there are fewer steps.
        state_batch_dim: the batch dimension of the state's tensors; by default as for
            :func:`bptt.unroll`.
        batch_first: whether inputs and outputs are [B, T, ...]; by default as for
            :func:`bptt.unroll`.

    Raises:
        TypeError: the module does not return outputs and a state whose tensors can be found.
        ValueError: there is a single step and no state before it; or no tensor of the state has
            a gradient, or its batch is in another dimension.
    """
    layout = Layout.of(module, inputs, batch_first, state_batch_dim, where="measure_decay")
    T, dim, buffers = layout.steps, layout.state_dim, Buffers(modules_in(module))
    lags = max(2, min(lags, T))
    begin = T - lags + 1  # lag k is the state before step T - k, so lags - 1 of them
    if begin == 0 and state is None:
        raise ValueError(
            "measure_decay: expected at least two steps, or a state before the only one, got one "
            "step and state=None"
        )
    with torch.no_grad(), buffers.aside():
        if begin:
            _, state = _call(module, layout, inputs, 0, begin, state)
    state = map_tensors(lambda s: s.detach().requires_grad_(is_float(s)), state)
    before: list[list[Tensor]] = []
    with torch.enable_grad(), buffers.aside():
        for t in range(begin, T):
            # As it enters the step: the dependence of c on that h counts in the step before.
            state = map_tensors(lambda s: s.view_as(s), state)
            before.append([s for s in leaves_of(state) if is_float(s)])
            y, state = _call(module, layout, inputs, t, t + 1, state)
        flat = [s for step in before for s in step if s.requires_grad]
        if not flat:
            raise ValueError(
                "measure_decay: the module returned a state without a tensor that can have a "
                "gradient; return the state, (outputs, state), and take it as an argument"
            )
        found = iter(torch.autograd.grad(loss(y), flat, allow_unused=True))

    def rows(s: Tensor) -> Tensor:
        gradient = next(found) if s.requires_grad else None
        gradient = torch.zeros_like(s) if gradient is None else gradient
        has_batch = s.dim() > dim and s.shape[dim] == layout.batch
        if layout.batch is None or not (has_batch or layout.is_certain):
            return gradient.reshape(1, -1)
        if not has_batch:
            raise ValueError(
                f"measure_decay: one of the state's tensors is {tuple(s.shape)}, where dimension "
                f"{dim} should be the batch of {layout.batch}; say where it is with "
                "state_batch_dim"
            )
        return gradient.movedim(dim, 0).flatten(1)

    gradients = [torch.cat([rows(s) for s in step], dim=1).double() for step in before][::-1]
    gradients.insert(0, gradients[0])
    total = torch.zeros_like(gradients[0][0])
    sums = []
    for g in gradients:
        total = total + g.mean(0)
        sums.append(float(total.norm()))
    norms = torch.stack([g.norm(dim=1) for g in gradients], dim=1)
    return Decay(norms.cpu().numpy(), np.array(sums))


def fit_decay_rate(
    lags: NDArray[np.float64],
    logarithms: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, float]:
    """Fit β, by which a norm is multiplied at each lag, by least squares to its logarithms.

    Args:
        lags: at least two, [K].
        logarithms: of the norms, [K].
        weights: how much each lag counts, [K]; all alike by default.

    Returns:
        β, and its standard error by the scatter around the line; with two lags that is 0.
    """
    w = np.ones(len(lags)) if weights is None else weights
    w = w / w.sum()
    k_off, y_off = lags - w @ lags, logarithms - w @ logarithms
    spread = w @ k_off**2
    slope = (w @ (k_off * y_off)) / spread
    scatter = (w @ (y_off - slope * k_off) ** 2) / max(1, len(lags) - 2)
    with np.errstate(over="ignore"):
        beta = float(np.exp(slope))
    return beta, beta * math.sqrt(scatter / spread)


def _call(
    module: Any, layout: Layout, inputs: Any, first: int, end: int, state: Any
) -> tuple[Any, Any]:
    """Run the module over some steps."""
    found = module(layout.piece(inputs, first, end), state)
    y, after = pair(found, "measure_decay: the module", "(outputs, state)")
    check_leaves(after, "measure_decay", "the state that the module returned")
    return y, after
