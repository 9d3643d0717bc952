"""Where the gradients begin: the derivative of a step's loss with respect to its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.flow.one_step import OneStep, rows_of, step_of
from bptt._src.flow.pairs import Pairs
from bptt._src.pytree import flatten, is_float, leaves_of


class Cotangents(NamedTuple):
    """The losses, and ∂L_t/∂y_t of all steps."""

    losses: Float[Tensor, "time batch"]
    """L_t of each sequence, [T, B] float64."""
    outputs: list[Tensor]
    """∂L_t/∂y_t in place of each of the outputs' tensors that are floating-point numbers; of the
    steps that are not followed there may be zeros."""


def cotangents(
    outputs: Any,
    loss_fn: Callable[[Any], Tensor] | None,
    pairs: Pairs,
    time: int,
    check: bool = True,
) -> Cotangents:
    """Compute the losses of all steps, and where the gradients of those that are followed begin.

    Args:
        outputs: of the module, a tensor [T, B, ...] or a nest of such.
        loss_fn: ``outputs -> losses``, [T] or [T, B]; None: :func:`random_directions`. The loss
            of a single step, a scalar or [B], raises OneStep.
        pairs: which are followed.
        time: the dimension of time in the outputs.
        check: whether to make sure that the losses depend on their own steps only.

    Raises:
        OneStep: there is only the loss of a single step; the caller has to place it there.
        ValueError: the losses are of another shape, or one that is followed depends on another
            step's output, or on no output.
    """
    steps, batch = pairs.steps, pairs.batch
    leaves, put = flatten(outputs)
    copies = [y.detach().requires_grad_() if is_float(y) else y for y in leaves]
    tensors = [y for y in copies if is_float(y)]
    if loss_fn is None:
        if len(leaves) != 1 or not tensors:
            raise ValueError(
                "gradient_flow: the outputs are not one tensor of floating-point numbers, so it "
                "takes a loss_fn, outputs -> losses [T] or [T, B]"
            )
        return random_directions(tensors[0], steps, batch, time)
    with torch.enable_grad():
        losses = loss_fn(put(copies))
    _check_graph(losses)
    if isinstance(losses, Tensor) and (step := step_of(losses, tensors, pairs, time)) is not None:
        raise OneStep(step)
    _check_losses(losses, steps, batch)
    times = list(pairs.times)
    ones = torch.zeros_like(losses)
    ones[times] = 1

    def gradients(of: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            losses, tensors, of, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    found = gradients(ones)
    if check:  # if each depends on its own step alone, their weights are weights of the rows
        generator = torch.Generator().manual_seed(0)
        weights = ones * (torch.rand(ones.shape, generator=generator) + 0.5).to(ones)
        for g, w in zip(found, gradients(weights), strict=True):
            _check_own_step(g, w, weights, times, time)
    of_each = losses.detach().double()
    if losses.dim() == 1:
        of_each = of_each.unsqueeze(1).expand(-1, batch)
    return Cotangents(of_each, [*found])


def random_directions(y: Tensor, steps: int, batch: int, time: int) -> Cotangents:
    """Take ⟨v_t, y_t⟩ for losses, with random directions v_t of length 1.

    A direction is the same for all sequences, and for every module with so many outputs: they
    are drawn from a seed of their own.

    Args:
        y: the outputs, [T, B, ...].
        steps: T.
        batch: B.
        time: the dimension of time.
    """
    v = _directions(y, batch_dim=1 - time, time=time)
    return Cotangents(_products(v, y.detach(), steps, batch, time), [v])


def of_random_directions(outputs: Any, *, steps: int, batch: int, time: int) -> Tensor:
    """Return the losses of :func:`random_directions`, [T, B] float64, with their graph."""
    (y,) = leaves_of(outputs)
    return _products(_directions(y, batch_dim=1 - time, time=time), y, steps, batch, time)


def _directions(y: Tensor, batch_dim: int, time: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = [1 if d == batch_dim and y.dim() > 2 else n for d, n in enumerate(y.shape)]
    v = torch.randn(shape, generator=generator, dtype=torch.float64)
    others = [d for d in range(y.dim()) if d != time]
    return (v / v.square().sum(others, keepdim=True).sqrt()).to(y).expand_as(y)


def _products(v: Tensor, y: Tensor, steps: int, batch: int, time: int) -> Tensor:
    return (v * y).double().movedim(time, 0).reshape(steps, batch, -1).sum(2)


def _check_graph(losses: Any) -> None:
    if isinstance(losses, Tensor) and not losses.requires_grad:
        raise ValueError(
            "gradient_flow: the losses depend on no output, or loss_fn cut the graph "
            "(detach, item, no_grad)"
        )


def _check_losses(losses: Any, steps: int, batch: int) -> None:
    shapes = ((steps,), (steps, batch))
    if not isinstance(losses, Tensor) or tuple(losses.shape) not in shapes:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        turned = found == (batch, steps)
        raise ValueError(
            f"gradient_flow: loss_fn has to give a loss for each step, [T] or [T, B], "
            f"{shapes[0]} or {shapes[1]} (time first, whatever batch_first says), got {found}; "
            + (
                "transpose them, or, if the inputs are [B, T, ...], give batch_first=True"
                if turned
                else "do not sum or average over time"
            )
        )


def _check_own_step(
    g: Tensor, weighted: Tensor, weights: Tensor, times: list[int], time: int
) -> None:
    rows, found = rows_of(g, len(weights), time), weighted.movedim(time, 0)
    size = float(rows.abs().nan_to_num().amax()) if g.numel() else 0.0
    others = torch.ones(len(weights), dtype=torch.bool, device=g.device)
    others[times] = False
    own, of = rows[times], weights[times]
    own = own * of.view(*of.shape, *(1,) * (own.dim() - of.dim()))
    is_own = torch.allclose(own, found[times], rtol=1e-3, atol=1e-4 * size, equal_nan=True)
    if not is_own or bool(rows[others].nan_to_num(0, 0, 0).any()):
        raise ValueError(
            "gradient_flow: a step's loss depends on the outputs of other steps, or, where losses "
            "are [T, B], of other sequences; expected L_t of y_t alone (are the losses [T, B], "
            "time first?)"
        )
