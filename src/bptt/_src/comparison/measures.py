"""Measurements of a model besides its loss."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bptt import estimator_error
from bptt.credit import Plan
from bptt.errors import ZeroGradientError

DRAWS = 20  # plans drawn for bias and variance
PLANS = 20  # plans drawn to see how far a random credit reaches


def peak_bytes(run: Callable[[], Any]) -> int:
    """Measure the peak of the memory used by tensors while a function runs, beyond what was there.

    Every tensor that an operation makes counts until nothing refers to its memory any more, on any
    device; temporary memory within an operation does not count.
    """
    gc.collect()
    with _Peak() as watched:
        run()
    most: int = watched.most
    return most


class _Peak(TorchDispatchMode):
    """Sums up the memory of all tensors that operations make while it is active."""

    allows_kernels = True  # the kernels' outputs are allocated outside of them

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
        for t in optree.tree_leaves(nest):
            if not isinstance(t, Tensor):
                continue
            for part in (t._indices(), t._values()) if t.is_sparse else (t,):
                self._count(part.untyped_storage(), new)

    def _count(self, storage: Any, new: bool) -> None:
        if storage._cdata in self.sizes:
            return
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
    """Measure bias and variance of a credit's gradient; None if the exact one is zero."""
    try:
        found = estimator_error(model, inputs, loss, credit, draws=DRAWS, generator=generator).total
    except ZeroGradientError:
        return {"bias": None, "bias_noise": None, "variance": None}
    return {"bias": found.bias, "bias_noise": found.bias_noise, "variance": found.variance}


class Plans(NamedTuple):
    """Properties of a credit's plans."""

    exact: bool
    """Whether all of them are backpropagation through time itself."""
    reach: int
    """The largest number of steps that a loss is credited to, its own included."""
    drawn: bool
    """Whether they differ."""
    example: Plan
    """A plan for a single sequence; if plans differ, one with a typical amount of cuts."""


def plans_of(credit: Any, steps: int, batch: int, generator: torch.Generator) -> Plans:
    """Examine some plans of a credit."""
    single: list[Plan] = [credit.plan(steps, 1, generator) for _ in range(PLANS)]
    exact = all(p.is_full for p in single)
    drawn = any(p.blocks != single[0].blocks or (p.carry != single[0].carry).any() for p in single)
    if not drawn:
        return Plans(exact, steps if exact else single[0].reach, False, single[0])
    single.sort(key=lambda p: int((p.matrix() != 0).sum()))
    return Plans(exact, credit.plan(steps, batch, generator).reach, True, single[PLANS // 2])
