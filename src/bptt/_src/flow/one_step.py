"""The loss of a single step, such as the last, in place of one loss for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt._src.flow.pairs import Pairs


class OneStep(Exception):  # a finding for the caller, not an error
    """Raised if the losses turn out to be the loss of a single step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def placed(outputs: Any, *, loss_fn: Callable[[Any], Tensor], step: int, steps: int) -> Tensor:
    """Return losses of all steps, [T] or [T, B]: zeros, but for the loss of one step."""
    loss = loss_fn(outputs)
    each = loss.new_zeros(steps, *loss.shape)
    each[step] = loss
    return each


def refuse_others(step: int, pairs: Pairs, times: Sequence[int] | None) -> None:
    """Refuse to follow steps other than the one that has a loss.

    Raises:
        ValueError: ``times`` asks for others.
    """
    if times is not None and pairs.times != (step,):
        raise ValueError(
            f"gradient_flow: loss_fn returned one loss, that of step {step}, and "
            f"times={times!r} asks for others; leave times out, or return a loss for each step, "
            "[T] or [T, B]"
        )


def step_of(losses: Tensor, tensors: list[Tensor], pairs: Pairs, time: int) -> int | None:
    """Return the step whose loss it is; None where there is one for each step, [T] or [T, B].

    Args:
        losses: with their graph. A scalar is a loss of one step; so is [B], one for each sequence.
            Where T = B, [B] is told from [T] by the outputs on which its entries depend.
        tensors: the outputs.
        pairs: which losses are followed.
        time: the dimension of time in the outputs.

    Raises:
        ValueError: it depends on the outputs of several steps, or of none.
    """
    T, B = pairs.steps, pairs.batch
    shape = tuple(losses.shape)
    if shape not in ((), (B,)):
        return None
    ones = torch.ones_like(losses)
    reached = _reached(losses, ones, tensors, T, time)
    if shape == (T,):
        if len(reached) != 1:
            return None
        (step,) = reached
        ones[step] = 0
        return step if _reached(losses, ones, tensors, T, time) else None
    if len(reached) == 1:
        return reached[0]
    if not reached and len(pairs.times) == 1:  # it is zero, wherever it belongs
        return pairs.times[0]
    last = "outputs[-1]" if time == 0 else "outputs[:, -1]"
    found = f"{len(reached)} steps, {reached[0]} to {reached[-1]}" if reached else "no step"
    raise ValueError(
        f"gradient_flow: loss_fn returned {f'{shape}' if shape else 'one number'}, which depends "
        f"on the outputs of {found}; return a loss for each step, [T] or [T, B], here ({T},) "
        f"or ({T}, {B}), without summing or averaging over time, or the loss of a single step, as "
        f"of {last}"
    )


def _reached(
    losses: Tensor, weights: Tensor, tensors: list[Tensor], steps: int, time: int
) -> list[int]:
    """Return the steps on whose outputs the sum of losses, with these weights, depends."""
    reached = torch.zeros(steps, dtype=torch.bool)
    found = torch.autograd.grad(losses, tensors, weights, retain_graph=True, allow_unused=True)
    for g in found:
        if g is not None:
            reached |= (rows_of(g, steps, time) != 0).reshape(steps, -1).any(1).cpu()
    return reached.nonzero().flatten().tolist()


def rows_of(g: Tensor, steps: int, time: int) -> Tensor:
    """Return a gradient at the outputs, the dimension of time first.

    Raises:
        ValueError: there is no such dimension.
    """
    if g.dim() < 1 + time or g.shape[time] != steps:
        raise ValueError(
            f"gradient_flow: expected outputs with time as dimension {time}, {steps} steps, "
            f"got {tuple(g.shape)}"
        )
    return g.movedim(time, 0)
