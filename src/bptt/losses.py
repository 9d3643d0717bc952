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

import torch
from torch import Tensor

from bptt._src.dtypes import is_bf16
from bptt._src.engines.guard import dtype_of_autocast, without_autocast
from bptt._src.engines.readout import Readout
from bptt._src.readout_loss import Options, readout_loss


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
        computed in float32, and so is the returned loss. Where all of it is bfloat16, and under
        autocast to bfloat16, both sides of each product are rounded to it, if the processor
        multiplies it (:func:`bptt.kernels.backend`).

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
    autocast = dtype_of_autocast(hidden.device) is not None
    _check(hidden, weight, bias, targets, label_weights, reduction, autocast)
    dtype = _dtype_of(hidden, weight, bias)
    if label_weights is not None:
        label_weights = label_weights.detach().to(dtype)
    readout = Readout(
        hidden.reshape(-1, hidden.shape[-1]).to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        targets.reshape(-1),
        bf16=dtype is torch.float32 and is_bf16(weight.dtype, hidden.device),
    )
    with without_autocast(hidden.device):
        loss = readout_loss(readout, Options(label_weights, ignore_index, reduction))
    loss = loss if autocast else loss.to(hidden.dtype)
    return loss.reshape(targets.shape) if reduction == "none" else loss


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
