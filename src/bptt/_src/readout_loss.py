"""The loss of a readout: as one node of the graph, as one recorded operation, and by autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bptt._src.engines.backend import engine_for
from bptt._src.engines.define import differentiate, operator, shapes_of
from bptt._src.engines.guard import is_watched, only_by_autograd, without_autocast
from bptt._src.engines.readout import Readout
from bptt._src.engines.recording import are_recorded


class Options(NamedTuple):
    """How the losses of the rows become the result."""

    label_weights: Tensor | None
    """A factor for the loss of each label, [V]."""
    ignore_index: int
    """Rows with this target have no loss."""
    reduction: str
    """``"mean"``, ``"sum"`` or ``"none"``."""


_Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def readout_loss(readout: Readout, options: Options) -> Tensor:
    """Compute the loss, whatever looks on.

    Args:
        readout: hidden, weight, bias and targets, in the dtype to compute in.
        options: what is done with the losses of the rows.
    """
    if are_recorded() and not readout.hidden.is_meta:
        return _recorded(readout, options)
    label_weights = options.label_weights
    engine = engine_for(
        readout if label_weights is None else readout._replace(factors=label_weights)
    )
    if engine.RECORDS:
        return by_autograd(readout, options)
    loss: Tensor = _Fused.apply(*readout[:4], options, readout.bf16)
    return loss


def _found(
    readout: Readout, options: Options, needed: tuple[bool, ...], grad: Tensor | None = None
) -> _Results:
    """Find the loss, and the gradients of hidden, weight and bias that are needed.

    Args:
        readout: hidden, weight, bias and targets.
        options: what is done with the losses of the rows.
        needed: which gradients are.
        grad: that of each row's loss, where they are the result.
    """
    label_weights, ignore_index, reduction = options
    rows, counted = len(readout.targets), _counted(readout, ignore_index)
    hidden, weight, bias, targets, *_, bf16 = readout
    if counted is not None:
        hidden, targets = hidden.index_select(0, counted), targets.index_select(0, counted)
        grad = None if grad is None else grad.index_select(0, counted)
    # [] misreads negative views
    weights = None if label_weights is None else label_weights.index_select(0, targets)
    total = weights.sum() if weights is not None and reduction == "mean" else None
    factors = weights if total is None or weights is None else weights / total
    if grad is not None:
        factors = grad if weights is None else grad * weights
    elif reduction == "mean" and weights is None and len(targets):
        factors = hidden.new_full((len(targets),), 1 / len(targets))
    given = Readout(hidden, weight, bias, targets, factors, needed, bf16)
    losses, d_hidden, *d_others = engine_for(given, recorded=False).cross_entropy(given)
    if counted is not None and d_hidden is not None:
        d_hidden = readout.hidden.new_zeros(readout.hidden.shape).index_copy_(0, counted, d_hidden)
    return (_reduced(losses, weights, total, counted, rows, reduction), d_hidden, *d_others)  # type: ignore[return-value]


def _reduced(
    losses: Tensor,
    weights: Tensor | None,
    total: Tensor | None,
    counted: Tensor | None,
    rows: int,
    reduction: str,
) -> Tensor:
    if reduction == "none":
        losses = losses if weights is None else losses * weights
        return losses if counted is None else losses.new_zeros(rows).index_add(0, counted, losses)
    if weights is None:
        return losses.sum() if reduction == "sum" else losses.mean()
    loss = losses.dot(weights)
    return loss if total is None else loss / total


def _counted(readout: Readout, ignore_index: int) -> Tensor | None:
    """The indices of the rows that are not ignored; None: all of them.

    Raises:
        IndexError: one of them has an invalid label.
    """
    targets, V = readout.targets, len(readout.weight)
    if not len(targets):
        return None
    low, high = map(int, targets.aminmax())
    if low >= 0 and high < V and not low <= ignore_index <= high:
        return None
    counted = (targets != ignore_index).nonzero().squeeze(1)
    if len(counted):
        low, high = map(int, targets[counted].aminmax())
        if low < 0 or high >= V:
            raise IndexError(
                f"linear_cross_entropy: expected targets from 0 to {V - 1}, because weight has {V} "
                f"rows, or ignore_index={ignore_index}, got {low if low < 0 else high}"
            )
    return counted


# ------------------------------------------------------------------ as a node of the graph


class _Fused(torch.autograd.Function):
    """The gradients are found beside the loss, and wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        options: Options,
        bf16: bool,
    ) -> Tensor:
        each = options.reduction == "none"
        needed = (False,) * 3 if each else ctx.needs_input_grad[:3]
        readout = Readout(hidden, weight, bias, targets, bf16=bf16)
        loss, *found = _found(readout, options, needed)
        ctx.found = None if each else found
        ctx.options, ctx.bf16 = options._replace(label_weights=None), bf16
        ctx.save_for_backward(hidden, weight, bias, targets, options.label_weights)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *given, label_weights = ctx.saved_tensors
        readout, needed = Readout(*given)._replace(bf16=ctx.bf16), ctx.needs_input_grad[:3]
        options = ctx.options._replace(label_weights=label_weights)
        found, ctx.found = ctx.found, None  # given out without keeping a copy
        with without_autocast(readout.hidden.device):
            saved = (*given, label_weights)
            if torch.is_grad_enabled() or is_watched() or only_by_autograd(grad, *saved):
                return (*_differentiable(readout, options, needed, grad), *(None,) * 3)
            if options.reduction == "none":
                _, *found = _found(readout, options, needed, grad)
            else:
                if found is None:  # a second backward pass over the same graph
                    _, *found = _found(readout, options, needed)
                if grad != 1:
                    found = [None if d is None else d.mul_(grad) for d in found]
        return (*found, *(None,) * 3)


# ------------------------------------------------------------------------- as one operation

_OPERANDS = """
    Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? label_weights,
    SymInt ignore_index, str reduction, bool bf16, bool[] needed
"""


@operator("linear_cross_entropy", f"({_OPERANDS}) -> Tensor[]")
def _operation(*operands: Any) -> list[Tensor]:
    """Return the loss, and the gradients that are needed."""
    *given, label_weights, ignore_index, reduction, bf16, needed = operands
    options = Options(label_weights, ignore_index, reduction)
    found = _found(Readout(*given)._replace(bf16=bf16), options, tuple(needed))
    return [t for t in found if t is not None]


@shapes_of("linear_cross_entropy")
def _(*operands: Any) -> list[Tensor]:
    hidden, _, _, targets, _, _, reduction, _, needed = operands
    loss = hidden.new_empty(targets.shape if reduction == "none" else ())
    return [loss, *_like(operands[:3], needed)]


@operator("linear_cross_entropy_backward", f"(Tensor grad, {_OPERANDS}) -> Tensor[]")
def _operation_backward(grad: Tensor, *operands: Any) -> list[Tensor]:
    """Return the gradients that are needed, from that of each row's loss."""
    *given, label_weights, ignore_index, reduction, bf16, needed = operands
    options = Options(label_weights, ignore_index, reduction)
    found = _found(Readout(*given)._replace(bf16=bf16), options, tuple(needed), grad)
    return [t for t in found[1:] if t is not None]


@shapes_of("linear_cross_entropy_backward")
def _(grad: Tensor, *operands: Any) -> list[Tensor]:
    return _like(operands[:3], operands[-1])


def _like(tensors: Any, needed: list[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, need in zip(tensors, needed, strict=True) if need]


def _recorded(readout: Readout, options: Options) -> Tensor:
    wanted = torch.is_grad_enabled() and options.reduction != "none"
    given = readout.hidden, readout.weight, readout.bias
    needed = [wanted and t is not None and t.requires_grad for t in given]
    run = torch.ops.bptt.linear_cross_entropy.default
    loss: Tensor = run(*given, readout.targets, *options, readout.bf16, needed)[0]
    return loss


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.ignore_index, ctx.reduction, ctx.bf16, ctx.needed = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    hidden, weight, bias, targets, label_weights, *found = ctx.saved_tensors
    grad, needed = grads[0], ctx.needs_input_grad[:3]
    options = Options(label_weights, ctx.ignore_index, ctx.reduction)
    readout = Readout(hidden, weight, bias, targets)
    d: list[Tensor | None] = [None] * 3
    if grad is None:
        pass
    elif torch.is_grad_enabled():
        d = _differentiable(readout, options, needed, grad)
    else:
        there = list(needed) if ctx.reduction == "none" else ctx.needed
        if ctx.reduction == "none":
            run = torch.ops.bptt.linear_cross_entropy_backward.default
            found = run(grad, *readout[:4], *options, ctx.bf16, there)
        else:
            if any(need and not is_there for need, is_there in zip(needed, there, strict=True)):
                there = list(needed)  # of an exported program, more than when it was recorded
                _, *found = torch.ops.bptt.linear_cross_entropy.default(
                    *readout[:4], *options, ctx.bf16, there
                )
            found = [t * grad for t in found]
        each = iter(found)
        d = [next(each) if is_there else None for is_there in there]
    return (*d, *(None,) * 6)


differentiate("linear_cross_entropy", _backward, _keep_for_backward)


# ------------------------------------------------------------------------------ by autograd


def by_autograd(readout: Readout, options: Options) -> Tensor:
    """Compute the same loss from torch's own functions, some rows at a time."""
    label_weights, ignore_index, reduction = options
    losses = _losses(readout, ignore_index)
    weights = (readout.targets != ignore_index).to(losses.dtype)
    if label_weights is not None:
        labels = torch.where(readout.targets == ignore_index, 0, readout.targets)
        weights = weights * label_weights.index_select(0, labels)
    losses = losses * weights
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def _losses(readout: Readout, ignore_index: int) -> Float[Tensor, " rows"]:
    hidden, weight, bias, targets, *_ = readout
    found = [
        cross_entropy(
            linear(hidden[n], weight, bias),
            targets[n],
            ignore_index=ignore_index,
            reduction="none",
        )
        for n in readout.chunks()
    ]
    return torch.cat(found) if found else hidden.sum(1) * weight.sum()  # no rows, but a graph


def _differentiable(
    readout: Readout, options: Options, needed: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Compute the same gradients by autograd, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each view is a node of its own, so the computation of one tensor from another, as when
        # the weight is also an embedding's, is not part of this.
        hidden, weight, bias, targets = (None if t is None else t.view_as(t) for t in readout[:4])
        views = (hidden, weight, bias)
        inputs = [t for t, need in zip(views, needed, strict=True) if need and t is not None]
        loss = by_autograd(Readout(hidden, weight, bias, targets), options)  # type: ignore[arg-type]
        found = iter(torch.autograd.grad(loss, inputs, grad, create_graph=again))
    return [next(found) if need else None for need in needed]
