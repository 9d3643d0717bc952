"""The boundaries between steps: where a state is reset and its gradient weighted."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bptt._src.credit.plan import Plan
from bptt._src.engines.reference import ScaleGradient
from bptt._src.layout import Layout
from bptt._src.pytree import is_float, leaves_of, map_tensors


class Boundaries:
    """Resets a state where a sequence begins, and weights its gradient according to a plan.

    Args:
        plan: the plan, of which ``carry`` is used.
        resets: [T] or [T, B], time first whatever the module's layout.
        dim: the batch dimension of each of the state's tensors.
        batch: B; None if there is no batch dimension.
    """

    def __init__(self, plan: Plan, resets: Tensor | None, dim: int, batch: int | None) -> None:
        carry = torch.from_numpy(plan.carry)
        self.carry = carry[:, 0] if plan.batch == 1 else carry  # one for all
        self.resets = resets
        self.dim, self.batch = dim, batch

    def places(self) -> list[int]:
        """Return the steps before which something happens, always including 0."""
        happens = self.carry != 1
        happens = happens if happens.dim() == 1 else happens.any(1)
        if self.resets is not None:
            resets = self.resets if self.resets.dim() == 1 else self.resets.any(1)
            happens = happens | resets.to(happens.device)
        happens[0] = True
        return [int(t) for t in happens.nonzero()]

    def passes(self, t: int) -> bool:
        """Whether the gradient of any sequence crosses from step t to the step before."""
        crosses = self.carry[t] != 0
        if self.resets is not None:
            crosses = crosses & ~self.resets[t].to(crosses.device)
        return bool(crosses.any())

    def enter(self, t: int, state: Any) -> Any:
        """Return the state that enters step t, under autograd: reset, with its gradient scaled."""

        def scaled(s: Tensor) -> Tensor:
            factor = self.factor(t, s) if is_float(s) else None
            return s if factor is None else ScaleGradient.apply(s, factor)

        return map_tensors(scaled, self.reset(t, state))

    def reset(self, t: int, state: Any) -> Any:
        """Set the state to zero where step t begins a sequence."""
        if self.resets is None or not bool(self.resets[t].any()):
            return state
        at = self.resets[t]
        if at.dim() == 0:
            return map_tensors(torch.zeros_like, state)
        return map_tensors(partial(self._zero, at), state)

    def _zero(self, at: Tensor, s: Tensor) -> Tensor:
        if not is_float(s) and (s.dim() <= self.dim or s.shape[self.dim] != self.batch):
            return s  # a counter that all sequences share
        return torch.where(self.along(at, s), torch.zeros_like(s), s)

    def check(self, t: int, state: Any) -> None:
        """Refuse a state that does not fit a step's factors, before the backward pass would."""
        for s in leaves_of(state):
            if is_float(s):
                self.factor(t, s)

    def factor(self, t: int, s: Tensor) -> Tensor | None:
        """Return the factor on the gradient of one of the state's tensors; None: 1."""
        at = self.carry[t]
        if bool((at == 1).all()):
            return None
        return self.along(at.to(s.real.dtype), s)

    def scale(self, t: int, gradient: Tensor | None) -> Tensor | None:
        """Reweight a gradient that crosses from step t to the one before; stop it at resets."""
        if gradient is None:
            return None
        factor = self.factor(t, gradient)
        if factor is not None:
            gradient = torch.where(factor == 0, torch.zeros_like(gradient), gradient * factor)
        if self.resets is not None and bool(self.resets[t].any()):
            at = self.along(self.resets[t], gradient)
            gradient = torch.where(at, torch.zeros_like(gradient), gradient)
        return gradient

    def handed_on(self, layout: Layout, first: int, end: int) -> dict[str, Any]:
        """Return ``carry`` and ``resets`` of some steps, for a module that takes them."""
        carry, resets = self.carry[first:end], self.resets
        return {
            "carry": None if bool((carry == 1).all()) else layout.as_given(carry),
            "resets": None if resets is None else layout.as_given(resets[first:end]),
        }

    def along(self, at: Tensor, s: Tensor) -> Tensor:
        """Reshape values for the sequences, [B], to broadcast along the batch of ``s``."""
        at = at.to(s.device)
        if at.numel() == 1:
            return at.reshape(())
        if s.dim() <= self.dim or s.shape[self.dim] != len(at):
            raise ValueError(
                f"bptt.unroll: one of the state's tensors is {tuple(s.shape)}, where dimension "
                f"{self.dim} should be the batch of {len(at)}; say where it is with "
                "state_batch_dim, or treat all sequences alike: resets [T], per_sequence=False"
            )
        return at.view(-1, *(1,) * (s.dim() - self.dim - 1))
