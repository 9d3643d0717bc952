"""How the gradient of one step's loss decays on its way back, measured on any module."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt.pytree import is_float, leaves_of, map_tensors


class Decay(NamedTuple):
    """What a probe finds; k counts the steps back, from 0 on."""

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
) -> Decay:
    """Measure ‖∂L_t/∂h_{t-k}‖ for the loss of the last step.

    The module is run step by step over the last steps; what comes before them only warms the
    state up. From outside the state is seen where it goes into a step, so the gradient at lag 0,
    at h_t itself, is taken to be that at lag 1.

    Args:
        module: any callable ``(inputs [T, B, ...], state) -> (outputs [T, B, ...], state)``.
        inputs: [T, B, ...], or a nest of such.
        loss: ``outputs [1, B, ...] of the last step -> scalar``, a sum or mean over the sequences.
        state: the initial state; None where the module knows how to begin.
        lags: how many lags to look at, from 0 on; fewer where there are fewer steps.
        state_batch_dim: where the batch lies in the state's tensors; by default as for
            :func:`bptt.unroll`.

    Raises:
        ValueError: there is a single step and no state before it.
    """
    dim = int(getattr(module, "state_batch_dim", 1)) if state_batch_dim is None else state_batch_dim
    first = next(x for x in leaves_of(inputs) if isinstance(x, Tensor))
    is_batch = first.dim() >= (3 if isinstance(module, torch.nn.RNNBase) else 2)
    time = int(is_batch and bool(getattr(module, "batch_first", False)))
    T = first.shape[time]
    lags = max(2, min(lags, T))

    def piece(first: int, end: int) -> Any:
        return map_tensors(lambda x: x.narrow(time, first, end - first), inputs)

    begin = T - lags + 1  # lag k is the state before step T - k, so lags - 1 of them
    if begin == 0 and state is None:
        raise ValueError(
            "measure_decay: expected two steps or more, or a state before the only one, got one "
            "step and state=None"
        )
    with torch.no_grad():
        _, state = module(piece(0, begin), state) if begin else (None, state)
    state = map_tensors(lambda s: s.detach().requires_grad_(is_float(s)), state)
    before: list[list[Tensor]] = []
    with torch.enable_grad():
        for t in range(begin, T):
            # As it goes into the step: that h is computed from c counts in the step before.
            state = map_tensors(lambda s: s.view_as(s), state)
            before.append([s for s in leaves_of(state) if is_float(s)])
            y, state = module(piece(t, t + 1), state)
        flat = [s for step in before for s in step if s.requires_grad]
        found = iter(torch.autograd.grad(loss(y), flat, allow_unused=True))

    def rows(s: Tensor) -> Tensor:
        gradient = next(found) if s.requires_grad else None
        gradient = torch.zeros_like(s) if gradient is None else gradient
        if not is_batch or s.dim() <= dim:
            return gradient.reshape(1, -1)
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
