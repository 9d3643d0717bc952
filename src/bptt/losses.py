"""The readout and its cross-entropy in one, without storing the logits of all rows.

A readout over V labels makes [N, V] logits, and their gradient is as large again: most of a
language model's memory, and much of its time. Here the logits of some rows at a time are computed,
and their loss and gradient taken in place; only the gradients of the hidden states, [N, H], of
the weight, [V, H], and of the bias, [V], are kept. They are found in the forward pass, and the
backward pass only multiplies them by the incoming gradient. Nothing is approximated.

With p = softmax(W h + b) and the target's one-hot vector e, a row's loss is -ln p[target], and

    ∂L/∂logits = p - e      ∂L/∂h = Wᵀ (p - e)      ∂L/∂W = Σ (p - e) hᵀ      ∂L/∂b = Σ (p - e)

Names: N rows, H hidden units, V labels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Engine
from bptt._src.engines.guard import is_watched, only_by_autograd, without_autocast
from bptt._src.engines.readout import Readout


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    label_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Compute the cross-entropy of a linear readout without storing its logits.

    This is ``cross_entropy(linear(hidden, weight, bias), targets, ...)`` of
    ``torch.nn.functional``, value and gradients, up to rounding. Second derivatives, forward mode
    and the transforms of ``torch.func`` use those functions, some rows at a time; their graph
    keeps the logits.

    Args:
        hidden: the readout's input, [..., H].
        weight: the readout's weight, [V, H]; it may be shared with an embedding.
        bias: the readout's bias, [V], or None.
        targets: the labels, [...] int64, each from 0 to V - 1, or ``ignore_index``.
        label_weights: a factor for the loss of each label, [V]; it gets no gradient.
        ignore_index: rows with this target have no loss and are skipped.
        reduction: ``"mean"``: over the rows that are not ignored, weighted by their labels'
            weights; ``"sum"``; or ``"none"``: the loss of each row. With ``"none"`` the incoming
            gradients are known only in the backward pass, which has to compute the logits again.

    Returns:
        The loss, one number, or [...] with ``reduction="none"``. Half precision (float16,
        bfloat16) is computed in float32 and the loss is rounded; under autocast everything is
        computed in float32, and so is the returned loss.

    Raises:
        ValueError: shapes, dtypes or options do not match.
        RuntimeError: the tensors are on different devices.
        IndexError: a target is neither a label nor ``ignore_index``.

    >>> import torch, bptt
    >>> lstm, readout = bptt.LSTM(8, 16), torch.nn.Linear(16, 1000)
    >>> h, _ = lstm(torch.randn(35, 20, 8))
    >>> targets = torch.randint(1000, (35, 20))
    >>> loss = bptt.losses.linear_cross_entropy(h, readout.weight, readout.bias, targets)
    >>> loss.backward()
    """
    autocast = _is_autocast(hidden.device)
    _check(hidden, weight, bias, targets, label_weights, reduction, autocast)
    dtype = _dtype_of(hidden, weight, bias)
    if label_weights is not None:
        label_weights = label_weights.detach().to(dtype)
    readout = Readout(
        hidden.reshape(-1, hidden.shape[-1]).to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        targets.reshape(-1),
    )
    with without_autocast(hidden.device):
        engine = engine_for(
            readout if label_weights is None else Readout(*readout[:4], label_weights)
        )
        if engine.RECORDS:
            loss = _by_autograd(readout, label_weights, ignore_index, reduction)
        else:
            loss = _fused_loss(engine, readout, label_weights, ignore_index, reduction)
    loss = loss if autocast else loss.to(hidden.dtype)
    return loss.reshape(targets.shape) if reduction == "none" else loss


def _is_autocast(device: torch.device) -> bool:
    known = torch.amp.is_autocast_available(device.type)
    return known and torch.is_autocast_enabled(device.type)


# ------------------------------------------------------------------ as a node of the graph


def _fused_loss(
    engine: Engine,
    readout: Readout,
    label_weights: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The loss over the rows that are not ignored, as one node of the graph."""
    rows, counted = len(readout.targets), _counted(readout, ignore_index)
    if counted is not None:
        hidden, targets = (t.index_select(0, counted) for t in (readout.hidden, readout.targets))
        readout = readout._replace(hidden=hidden, targets=targets)
        engine = engine_for(readout, recorded=False)  # there may be no rows left
    if label_weights is None:
        losses: Tensor = _Fused.apply(engine, *readout[:4], None, None, reduction)
    else:
        weights = label_weights.index_select(0, readout.targets)  # [] misreads negative views
        if reduction != "none":
            total = weights.sum() if reduction == "mean" else None
            return cast(Tensor, _Fused.apply(engine, *readout[:4], weights, total, "sum"))
        losses = _Fused.apply(engine, *readout[:4], None, None, reduction) * weights
    if reduction == "none" and counted is not None:
        return losses.new_zeros(rows).index_add(0, counted, losses)
    return losses


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
        _check_labels(targets[counted], V, ignore_index)
    return counted


def _check_labels(targets: Tensor, labels: int, ignore_index: int) -> None:
    low, high = map(int, targets.aminmax())
    if low < 0 or high >= labels:
        raise IndexError(
            f"linear_cross_entropy: expected targets from 0 to {labels - 1}, because weight has "
            f"{labels} rows, or ignore_index={ignore_index}, got {low if low < 0 else high}"
        )


class _Fused(torch.autograd.Function):
    """The losses, or their sum or mean; with label weights, their weighted sum over a total."""

    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        total: Tensor | None,
        reduction: str,
    ) -> Tensor:
        ctx.each = reduction == "none"
        factors = weights if total is None or weights is None else weights / total
        if reduction == "mean" and len(targets):
            factors = hidden.new_full((len(targets),), 1 / len(targets))
        needed = (False,) * 3 if ctx.each else ctx.needs_input_grad[1:4]
        losses, *ctx.found = engine.cross_entropy(
            Readout(hidden, weight, bias, targets, factors, needed)
        )
        ctx.save_for_backward(hidden, weight, bias, targets, factors)
        if ctx.each:
            return losses
        if weights is None:
            return losses.sum() if reduction == "sum" else losses.mean()
        loss = losses.dot(weights)
        return loss if total is None else loss / total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, factors = saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:4]
        readout = Readout(hidden, weight, bias, targets, factors, needed)
        with without_autocast(hidden.device):
            if torch.is_grad_enabled() or is_watched() or only_by_autograd(grad, *saved):
                found = _differentiable_backward(readout, grad)
            elif ctx.each:
                found = _found_again(readout._replace(factors=grad))
            else:
                found = _given_out(ctx) or _found_again(readout)
                if grad != 1:
                    found = tuple(None if d is None else d.mul_(grad) for d in found)
        return (None, *found, None, None, None, None)


def _found_again(readout: Readout) -> tuple[Tensor | None, ...]:
    """The gradients computed again, from saved tensors that hooks may have changed."""
    if len(readout.targets):
        _check_labels(readout.targets, len(readout.weight), -100)
    return engine_for(readout, recorded=False).cross_entropy(readout)[1:]


def _given_out(ctx: Any) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of the forward pass, without keeping a copy.

    A second backward pass over the same graph gets None.
    """
    found, ctx.found = ctx.found, None
    return None if found is None else tuple(found)


# ------------------------------------------------------------------------------ by autograd


def _by_autograd(
    readout: Readout, label_weights: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """Compute the same loss from torch's own functions, some rows at a time."""
    losses = _losses(readout, ignore_index)
    weights = (readout.targets != ignore_index).to(losses.dtype)
    if label_weights is not None:
        labels = torch.where(readout.targets == ignore_index, 0, readout.targets)
        weights = weights * label_weights.index_select(0, labels)
    losses = losses * weights
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def _losses(readout: Readout, ignore_index: int = -100) -> Float[Tensor, " rows"]:
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


def _differentiable_backward(readout: Readout, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the same gradients by autograd, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each view is a node of its own, so the computation of one tensor from another, as when
        # the weight is also an embedding's, is not part of this.
        views = [None if t is None else t.view_as(t) for t in readout[:4]]
        readout = Readout(*views, readout.factors, readout.needed)  # type: ignore[arg-type, call-arg]
        inputs = [
            t for t, need in zip(views, readout.needed, strict=False) if need and t is not None
        ]
        losses = _losses(readout)
        if grad.dim() == 0:
            losses = losses.sum() if readout.factors is None else losses.dot(readout.factors)
        found = iter(torch.autograd.grad(losses, inputs, grad, create_graph=again))
    return tuple(next(found) if need else None for need in readout.needed)


# ---------------------------------------------------------------------------------- checks


def _dtype_of(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: the widest given, and float32 at least."""
    dtype = torch.float32
    for t in tensors:
        dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    label_weights: Tensor | None,
    reduction: str,
    autocast: bool,
) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"linear_cross_entropy: reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        )
    if hidden.dim() < 1 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"linear_cross_entropy: expected hidden [..., H] and weight [V, H], got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    V = len(weight)
    for name, t in (("bias", bias), ("label_weights", label_weights)):
        if t is not None and t.shape != (V,):
            raise ValueError(
                f"linear_cross_entropy: expected {name} [V] = ({V},), as weight has {V} rows, got "
                f"{tuple(t.shape)}"
            )
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(
            f"linear_cross_entropy: expected targets int64 of shape {tuple(hidden.shape[:-1])}, a "
            f"label for each row of hidden {tuple(hidden.shape)}, got {targets.dtype} of "
            f"{tuple(targets.shape)}"
        )
    named = {"weight": weight, "bias": bias, "targets": targets, "label_weights": label_weights}
    for name, t in named.items():
        if t is not None and t.device != hidden.device:
            raise RuntimeError(
                f"linear_cross_entropy: hidden and {name} are not at the same device, found hidden "
                f"at {hidden.device} and {name} at {t.device}"
            )
    dtypes = [t.dtype for t in (hidden, weight, bias) if t is not None]
    if not all(d.is_floating_point for d in dtypes) or (len(set(dtypes)) > 1 and not autocast):
        raise ValueError(
            "linear_cross_entropy: expected hidden, weight and bias of one floating-point dtype, "
            f"got {', '.join(str(d).removeprefix('torch.') for d in dtypes)}: convert them with "
            ".to(dtype), or use torch.autocast"
        )
