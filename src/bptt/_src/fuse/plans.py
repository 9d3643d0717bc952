"""What a fused cell is prepared to be, for each dtype, mode and sizes that it has met."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bptt._src.engines.backend import why_no_library
from bptt._src.engines.guard import is_watched, only_by_autograd, recognise
from bptt._src.fuse.attributes import Attributes, hooked
from bptt._src.fuse.fusion import Fusion
from bptt._src.fuse.preparing import prepare, refusal_of_tensors
from bptt._src.fuse.step import CellStep
from bptt.errors import FuseError

_PREPARING = threading.RLock()
"""While a step is traced, its module has other weights, and torch's Functions another apply."""
_MOST = 4


class _CheckedCall(NamedTuple):
    """A call that was looked at closely: others like it need not be."""

    attributes: Attributes
    own: list[Tensor]
    is_like: Callable[..., bool]
    plan: Fusion


class FusionPlans:
    """The plans of a cell.

    Attributes:
        found: by what they are for; with the attributes that were found then, or the reason why
            there is none.
    """

    def __init__(self, step: CellStep) -> None:
        self._step, self._known = step, list[_CheckedCall]()
        self.found: dict[Any, tuple[Attributes, Fusion | str]] = {}

    def find(self, xs: list[Tensor], states: list[Tensor]) -> tuple[Fusion | str, list[Tensor]]:
        """Return how a call is run, or why it is not run natively, and what the cell owns.

        The reason is empty if it is passing.

        Args:
            xs: the inputs, [T, B, ...].
            states: the states, [B, units].
        """
        with _PREPARING:
            if is_watched() or only_by_autograd() is not None:
                return "", []
            if forward_ad._current_level < 0 and xs[0].numel():
                for known in self._known:
                    is_like = known.is_like(*xs, *states, *known.own)
                    if is_like and known.attributes.are_as_found() and refusal() is None:
                        return known.plan, known.own
            return self._find(xs, states, recorded=False)

    def find_recorded(self, xs: list[Tensor], states: list[Tensor]) -> Fusion | str:
        """Return the plan of calls that are recorded, like this one: with weights of any kind."""
        with _PREPARING:
            return self._find(xs, states, recorded=True)[0]

    def _find(
        self, xs: list[Tensor], states: list[Tensor], recorded: bool
    ) -> tuple[Fusion | str, list[Tensor]]:
        step = self._step
        names, own = step.own()
        every = (*xs, *states, *own)
        is_odd = only_by_autograd(*every) is not None or not all(t.numel() for t in (*xs, *states))
        if is_odd and not recorded:
            return "", own
        reason = refusal(every)
        if reason is not None:
            return reason, own
        with_hooks = hooked(step.module)
        if with_hooks is not None:
            return (
                f"{with_hooks} has hooks, which are called at each step only if the cell is: "
                "remove them, or run bptt.Stepwise(cell)"
            ), own
        key = (
            names,
            step.is_training(),
            states[0].dtype,
            tuple((t.dtype, t.shape[2:]) for t in xs),
            tuple(s.shape[1:] for s in states),
        )
        seen, plan = self.found.get(key, (None, None))
        attributes = Attributes(step.module)
        # What was refused stays so: a cell that changes itself would be traced at each call.
        if plan is None or (isinstance(plan, Fusion) and seen != attributes):
            if is_odd:
                return "", own
            try:
                plan = prepare(step, [x[0] for x in xs], states, dict(zip(names, own, strict=True)))
            except FuseError as e:
                plan = str(e).removeprefix("bptt.fuse: ")
            attributes = Attributes(step.module)
            self.found[key] = attributes, plan
        if isinstance(plan, Fusion) and not is_odd:
            self._keep(attributes, xs, states, own, plan)
        return plan, own

    def _keep(
        self,
        attributes: Attributes,
        xs: list[Tensor],
        states: list[Tensor],
        own: list[Tensor],
        plan: Fusion,
    ) -> None:
        known = [k for k in self._known if k.attributes.are_as_found()][: _MOST - 1]
        if all(isinstance(p, nn.Parameter) for p in self._step.module.parameters()):  # lent ones go
            open_dims = [*[2] * len(xs), *[1] * len(states), *[None] * len(own)]
            is_like = recognise((*xs, *states, *own), open_dims)
            known.insert(0, _CheckedCall(attributes, own, is_like, plan))
        self._known = known


def refusal(tensors: tuple[Tensor, ...] = ()) -> str | None:
    """Return why tensors cannot be given to the native library now, if so."""
    reason = why_no_library()
    if reason is not None:
        return reason
    if torch.is_autocast_enabled("cpu"):
        return (
            "autocast is on, which a native loop does not follow: call it under "
            "torch.autocast('cpu', enabled=False)"
        )
    return refusal_of_tensors(tensors) if tensors else None
