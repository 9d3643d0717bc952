"""Some steps of a layer as functions of the state alone, and their derivatives.

The derivatives of a step are taken here, for everything that asks how the state of one step moves
that of the next: Jacobian norms, Lyapunov exponents, the penalty on vanishing gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from bptt._src.limits import cannot_differentiate_forwards

Step = Callable[[Any, Tensor], Tensor]
"""``(inputs of N rows, states before [N, n]) -> states after [N, n]``."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some steps of a layer at once, of all sequences: N rows, step after step."""

    function: Step
    inputs: Any
    before: Float[Tensor, "rows state"]
    """The states from which the steps start, [N, n]."""
    repeat: Callable[[Any, int], Any]
    """Makes copies of each row of the inputs, next to each other."""
    forwards: bool = True
    """Whether torch can differentiate the step forwards."""

    def step(self, rows: Float[Tensor, "copies state"]) -> Float[Tensor, "copies state"]:
        """Take the step from other states: k for each row, next to each other, [N·k, n]."""
        copies = len(rows) // len(self.before)
        return self.function(self.repeat(self.inputs, copies), rows)

    def pull(self, u: Float[Tensor, "rows state"]) -> Float[Tensor, "rows state"]:
        """Return u·J, one product for each row: what autograd sends back over the step."""
        with torch.enable_grad():
            rows = self.before.detach().requires_grad_()
            after = self.step(rows)
            (found,) = torch.autograd.grad(after, rows, u, materialize_grads=True)
        return found

    def push(self, v: Float[Tensor, "rows state k"]) -> Float[Tensor, "rows state k"]:
        """Return J·v, k products for each row: where the step takes small changes of the state.

        They are taken by forward mode; where a module knows none, from the whole Jacobian.
        """
        return self.push_forwards(v) if self.forwards else self.jacobian @ v

    def push_forwards(self, v: Float[Tensor, "rows state k"]) -> Float[Tensor, "rows state k"]:
        """Return J·v by forward mode."""
        N, n, k = v.shape
        rows = self.before.repeat_interleave(k, 0)
        _load_forward_mode()
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(rows, v.mT.reshape(N * k, n))
            found = forward_ad.unpack_dual(self.step(dual)).tangent
        return torch.zeros_like(v) if found is None else found.reshape(N, k, n).mT

    @cached_property
    def jacobian(self) -> Float[Tensor, "rows state state"]:
        """∂(state after)/∂(state before) for each row, [N, n, n]."""
        N, n = self.before.shape
        with torch.enable_grad():
            rows = self.before.detach().repeat_interleave(n, 0).requires_grad_()
            each = torch.eye(n, dtype=rows.dtype, device=rows.device).repeat(N, 1)
            after = self.step(rows)
            (found,) = torch.autograd.grad(after, rows, each, materialize_grads=True)
        return found.view(N, n, n)

    def knows_forward_mode(self) -> bool:
        """Whether forward mode agrees with backward mode along one direction of each row.

        Of some operations torch knows no derivative forwards, and says so; of an operator that was
        registered with a backward pass alone it silently takes none.
        """
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(self.before.shape, generator=generator, dtype=torch.float64)
        u = u.to(self.before)
        v = self.pull(u)  # u·J·v is its squared length then
        try:
            pushed = self.push_forwards(v.unsqueeze(2)).squeeze(2)
        except NotImplementedError as e:
            if not cannot_differentiate_forwards(e):
                raise
            return False
        expected, found = v.double().square().sum(1), (u.double() * pushed).sum(1)
        tolerance = 4 * torch.finfo(v.dtype).eps ** 0.5
        return torch.allclose(found, expected, rtol=max(tolerance, 1e-2), atol=0, equal_nan=True)


@cache
def _load_forward_mode() -> None:
    """Make torch load forward mode now: loading it warns, an error where warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
