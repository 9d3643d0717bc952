"""What is measured on a model besides its loss."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bptt.bias import estimator_error
from bptt.credit import Plan
from bptt.errors import ZeroGradientError
from bptt.pytree import leaves_of

DRAWS = 20  # of plans, for bias and variance
PLANS = 20  # to see how far a credit that draws them reaches


def peak_bytes(run: Callable[[], Any]) -> int:
    """Find the most memory that tensors had in use while something ran, beyond what was there.

    Every tensor that an operation makes counts from then until nothing refers to its memory any
    more, on any device; what an operation needs for itself while it runs does not count.
    """
    gc.collect()
    with _Peak() as watched:
        run()
    most: int = watched.most
    return most


class _Peak(TorchDispatchMode):
    """Sums up the memory of all tensors that operations make, as long as it lives."""

    allows_kernels = True  # what they write to is made outside of them

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs or {}), new=False)
        found = func(*args, **(kwargs or {}))
        self._meet(found, new=True)
        return found

    def _meet(self, nest: Any, *, new: bool) -> None:
        for t in leaves_of(nest):
            if not isinstance(t, Tensor):
                continue
            storage: Any = t.untyped_storage()
            if storage._cdata in self.sizes:
                continue
            self.sizes[storage._cdata] = storage.nbytes() if new else 0
            self.now += self.sizes[storage._cdata]
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage, 0)


def gradient_error(
    model: torch.nn.Module,
    inputs: Any,
    loss: Callable[[Any], torch.Tensor],
    credit: Any,
    generator: torch.Generator,
) -> dict[str, float | None]:
    """Give bias and variance of a credit's gradient; None where the exact one is zero."""
    try:
        found = estimator_error(model, inputs, loss, credit, draws=DRAWS, generator=generator).total
    except ZeroGradientError:
        return {"bias": None, "bias_noise": None, "variance": None}
    return {"bias": found.bias, "bias_noise": found.bias_noise, "variance": found.variance}


class Plans(NamedTuple):
    """What the plans of a credit are like."""

    exact: bool
    """Whether all of them are backpropagation through time itself."""
    reach: int
    """The most steps that a loss is credited to, its own included."""
    drawn: bool
    """Whether they differ."""
    example: Plan
    """One for a single sequence; of those that differ, one that cuts neither much nor little."""


def plans_of(credit: Any, steps: int, batch: int, generator: torch.Generator) -> Plans:
    """Look at some plans of a credit."""
    single: list[Plan] = [credit.plan(steps, 1, generator) for _ in range(PLANS)]
    exact = all(p.is_full for p in single)
    drawn = any(p.blocks != single[0].blocks or (p.carry != single[0].carry).any() for p in single)
    if not drawn:
        return Plans(exact, steps if exact else single[0].reach, False, single[0])
    single.sort(key=lambda p: int((p.matrix() != 0).sum()))
    return Plans(exact, credit.plan(steps, batch, generator).reach, True, single[PLANS // 2])
