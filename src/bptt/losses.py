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

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bptt._src.engines import backend, native
from bptt._src.engines.guard import is_watched
from bptt._src.engines.sequence import needs_the_cells, without_autocast

CHUNK = 2**22  # logits at a time: few enough for the cache, enough for efficient products


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
    readout = _Readout(
        hidden.reshape(-1, hidden.shape[-1]).to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        targets.reshape(-1),
    )
    with without_autocast(hidden.device) if autocast else nullcontext():
        given = (hidden, weight, bias, targets, label_weights)
        by_autograd = is_watched() or hidden.is_meta or needs_the_cells(*given)
        compute = _by_autograd if by_autograd else _fused_loss
        loss = compute(readout, label_weights, ignore_index, reduction)
    loss = loss if autocast else loss.to(hidden.dtype)
    return loss.reshape(targets.shape) if reduction == "none" else loss


def _is_autocast(device: torch.device) -> bool:
    known = torch.amp.is_autocast_available(device.type)
    return known and torch.is_autocast_enabled(device.type)


class _Readout(NamedTuple):
    """The inputs of the loss, row by row, all of one dtype, which is not half precision."""

    hidden: Float[Tensor, "rows hidden"]
    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None
    targets: Int[Tensor, " rows"]


class Found(NamedTuple):
    """The loss of each row, and the gradients of their weighted sum, None if not needed."""

    losses: Float[Tensor, " rows"]
    hidden: Float[Tensor, "rows hidden"] | None
    weight: Float[Tensor, "vocabulary hidden"] | None
    bias: Float[Tensor, " vocabulary"] | None


def fused(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " rows"],
    factors: Float[Tensor, " rows"] | None,
    needed: tuple[bool, bool, bool],
) -> Found:
    """Compute the losses and their gradients, some rows at a time.

    Args:
        hidden: the readout's input, [N, H].
        weight: the readout's weight, [V, H].
        bias: the readout's bias, [V], or None.
        targets: the labels, [N] int64, each from 0 to V - 1.
        factors: factors on the rows' losses, [N], in the gradients only; None: all are 1.
        needed: whether the gradients of hidden, weight and bias are needed.
    """
    if backend.runs_native() and native.serves_readout(hidden, weight):
        return Found(*native.cross_entropy(hidden, weight, bias, targets, factors, needed))
    return twin(hidden, weight, bias, targets, factors, needed)


def twin(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " rows"],
    factors: Float[Tensor, " rows"] | None,
    needed: tuple[bool, bool, bool],
) -> Found:
    """Compute the same as :func:`fused` in plain PyTorch: the native kernel's readable twin."""
    losses = hidden.new_empty(len(hidden))
    d_hidden, d_weight, d_bias = (
        torch.zeros_like(t, memory_format=torch.contiguous_format)
        if t is not None and wanted
        else None
        for t, wanted in zip((hidden, weight, bias), needed, strict=True)
    )
    logits = hidden.new_empty(min(_at_a_time(weight), len(hidden)), len(weight))
    for n in _chunks(hidden, weight):
        h, target, p = hidden[n], targets[n].unsqueeze(1), logits[: n.stop - n.start]
        if bias is None:
            torch.mm(h, weight.t(), out=p)
        else:
            torch.addmm(bias, h, weight.t(), out=p)
        of_target, largest = p.gather(1, target), p.amax(1, keepdim=True)
        torch.softmax(p, 1, out=p)
        # ln Σ exp(logits), from the largest logit and its probability, which is never near 0.
        total = largest - p.amax(1, keepdim=True).log()
        torch.sub(total, of_target, out=losses[n].unsqueeze(1))
        if not any(needed):
            continue
        p.scatter_add_(1, target, p.new_full((1, 1), -1).expand(len(p), 1))  # p - e
        if factors is not None:
            p *= factors[n].unsqueeze(1)
        if d_hidden is not None:
            torch.mm(p, weight, out=d_hidden[n])
        if d_weight is not None:
            d_weight.addmm_(p.t(), h)
        if d_bias is not None:
            d_bias += p.sum(0)
    return Found(losses, d_hidden, d_weight, d_bias)


def _at_a_time(weight: Tensor) -> int:
    return max(1, CHUNK // max(1, len(weight)))


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """The rows that are computed at a time."""
    rows, step = len(hidden), _at_a_time(weight)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


# ------------------------------------------------------------------ as a node of the graph


def _fused_loss(
    readout: _Readout, label_weights: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """The loss by :func:`fused`, over the rows that are not ignored."""
    rows, counted = len(readout.targets), _counted(readout, ignore_index)
    if counted is not None:
        hidden, targets = (t.index_select(0, counted) for t in (readout.hidden, readout.targets))
        readout = readout._replace(hidden=hidden, targets=targets)
    if label_weights is None:
        losses: Tensor = _Fused.apply(*readout, None, None, reduction)
    else:
        weights = label_weights.index_select(0, readout.targets)  # [] misreads negative views
        if reduction != "none":
            total = weights.sum() if reduction == "mean" else None
            return cast(Tensor, _Fused.apply(*readout, weights, total, "sum"))
        losses = _Fused.apply(*readout, None, None, reduction) * weights
    if reduction == "none" and counted is not None:
        return losses.new_zeros(rows).index_add(0, counted, losses)
    return losses


def _counted(readout: _Readout, ignore_index: int) -> Tensor | None:
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
        needed = (False,) * 3 if ctx.each else ctx.needs_input_grad[:3]
        losses, *ctx.found = fused(hidden, weight, bias, targets, factors, needed)
        ctx.save_for_backward(hidden, weight, bias, targets, factors)
        if ctx.each:
            return losses
        if weights is None:
            return losses.sum() if reduction == "sum" else losses.mean()
        loss = losses.dot(weights)
        return loss if total is None else loss / total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = hidden, weight, bias, targets, factors = ctx.saved_tensors
        readout, needed = _Readout(hidden, weight, bias, targets), ctx.needs_input_grad[:3]
        with without_autocast(hidden.device) if _is_autocast(hidden.device) else nullcontext():
            if torch.is_grad_enabled() or is_watched() or needs_the_cells(grad, *saved):
                found = _differentiable_backward(readout, factors, grad, needed)
            elif ctx.each:
                found = _found_again(readout, grad, needed)
            else:
                found = _given_out(ctx) or _found_again(readout, factors, needed)
                if grad != 1:
                    found = tuple(None if d is None else d.mul_(grad) for d in found)
        return (*found, None, None, None, None)


def _found_again(
    readout: _Readout, factors: Tensor | None, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """The gradients computed again, from saved tensors that hooks may have changed."""
    if len(readout.targets):
        _check_labels(readout.targets, len(readout.weight), -100)
    return fused(*readout, factors, needed)[1:]


def _given_out(ctx: Any) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of the forward pass, without keeping a copy.

    A second backward pass over the same graph gets None.
    """
    found, ctx.found = ctx.found, None
    return None if found is None else tuple(found)


# ------------------------------------------------------------------------------ by autograd


def _by_autograd(
    readout: _Readout, label_weights: Tensor | None, ignore_index: int, reduction: str
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


def _losses(readout: _Readout, ignore_index: int = -100) -> Float[Tensor, " rows"]:
    hidden, weight, bias, targets = readout
    found = [
        cross_entropy(
            linear(hidden[n], weight, bias),
            targets[n],
            ignore_index=ignore_index,
            reduction="none",
        )
        for n in _chunks(hidden, weight)
    ]
    return torch.cat(found) if found else hidden.sum(1) * weight.sum()  # no rows, but a graph


def _differentiable_backward(
    readout: _Readout, factors: Tensor | None, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Compute the same gradients by autograd, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each view is a node of its own, so the computation of one tensor from another, as when
        # the weight is also an embedding's, is not part of this.
        readout = _Readout(*(None if t is None else t.view_as(t) for t in readout))  # type: ignore[arg-type]
        inputs = [t for t, need in zip(readout, needed, strict=False) if need and t is not None]
        losses = _losses(readout)
        if grad.dim() == 0:
            losses = losses.sum() if factors is None else losses.dot(factors)
        found = iter(torch.autograd.grad(losses, inputs, grad, create_graph=again))
    return tuple(next(found) if need else None for need in needed)


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
