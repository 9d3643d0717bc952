"""The readout: logits and losses over the vocabulary, by one softmax or by an adaptive one.

An adaptive softmax (E. Grave et al., "Efficient softmax approximation for GPUs", ICML 2017) gives
the most frequent tokens a softmax of their own, the head, in which each cluster of the others is
one more label; within a cluster the readout is narrower. A token of cluster i has the probability
p(i | h) p(token | i, h), so that all probabilities sum to 1: it is another model than the full
softmax, not an approximation at evaluation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bptt.data import IGNORED
from bptt.losses import linear_cross_entropy


class AdaptiveReadout(nn.Module):
    """:class:`torch.nn.AdaptiveLogSoftmaxWithLoss`, its loss by the fused kernels.

    Args:
        hidden: the readout's inputs H.
        vocabulary: the tokens V, in order of falling frequency.

    >>> import torch
    >>> readout = AdaptiveReadout(64, 3000)
    >>> readout.softmax.cutoffs
    [200, 600, 3000]
    >>> readout(torch.randn(5, 64)).exp().sum(-1).round(decimals=4).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        # Each cluster has a projection div_value times narrower than the one before; not to 0.
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            hidden,
            vocabulary,
            cutoffs_of(vocabulary),
            div_value=min(4.0, float(math.isqrt(hidden))),
            head_bias=True,
        )

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocabulary"]:
        """Return the logarithm of each token's probability."""
        head = self.softmax.head(hidden).log_softmax(-1)
        first = self.softmax.shortlist_size
        parts = [head[..., :first]]
        for i, tail in enumerate(self.softmax.tail):
            parts.append(tail(hidden).log_softmax(-1) + head[..., first + i : first + i + 1])
        return torch.cat(parts, dim=-1)

    def loss(
        self, hidden: Tensor, targets: Int[Tensor, "*rows"], reduction: str, *, learns: bool
    ) -> Tensor:
        """Compute the loss of the targets, as :func:`loss_of`: each is in the head or a cluster."""
        h, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        each, first = "none" if reduction == "none" else "sum", self.softmax.shortlist_size
        of_head, parts = flat.clone(), []
        for i, (low, high) in enumerate(pairwise(self.softmax.cutoffs)):
            rows = ((flat >= low) & (flat < high)).nonzero().squeeze(1)
            of_head[rows] = first + i
            layers = cast("list[nn.Linear]", list(cast(nn.Sequential, self.softmax.tail[i])))
            down, out = (_weight(layer.weight, learns) for layer in layers)
            with torch.autocast(h.device.type, enabled=False):
                narrow = nn.functional.linear(h.index_select(0, rows).to(down.dtype), down)
            parts.append(
                (rows, linear_cross_entropy(narrow, out, None, flat[rows] - low, reduction=each))
            )
        W, b = (_weight(p, learns) for p in (self.softmax.head.weight, self.softmax.head.bias))
        loss = linear_cross_entropy(h, W, b, of_head, ignore_index=IGNORED, reduction=each)
        for rows, of_cluster in parts:
            loss = loss.index_add(0, rows, of_cluster) if each == "none" else loss + of_cluster
        if reduction == "none":
            return loss.view(targets.shape)
        return loss / (flat != IGNORED).sum() if reduction == "mean" else loss


Readout = nn.Linear | AdaptiveReadout


def loss_of(
    readout: Readout,
    hidden: Float[Tensor, "*rows hidden"],
    targets: Int[Tensor, "*rows"],
    *,
    reduction: str = "mean",
    learns: bool = True,
) -> Tensor:
    """Compute the loss of a readout without storing its logits.

    Args:
        readout: the readout.
        hidden: its input, [..., H].
        targets: the tokens, [...]; ``bptt.data.IGNORED`` where there is none.
        reduction: as for :func:`bptt.losses.linear_cross_entropy`.
        learns: whether its parameters get gradients.
    """
    if isinstance(readout, AdaptiveReadout):
        return readout.loss(hidden, targets, reduction, learns=learns)
    W, b = _weight(readout.weight, learns), _weight(readout.bias, learns)
    return linear_cross_entropy(hidden, W, b, targets, ignore_index=IGNORED, reduction=reduction)


def cutoffs_of(vocabulary: int) -> list[int]:
    """Return where the clusters begin: with a fifteenth of the vocabulary, and three.

    >>> cutoffs_of(30000), cutoffs_of(2)
    ([2000, 6000], [1])
    """
    first = max(1, round(vocabulary / 15))
    return [n for n in (first, 3 * first) if n < vocabulary]


def size_of(hidden: int, vocabulary: int, *, adaptive: bool) -> int:
    """Return the number of a readout's parameters."""
    if not adaptive:
        return vocabulary * (hidden + 1)
    with torch.device("meta"):
        return sum(p.numel() for p in AdaptiveReadout(hidden, vocabulary).parameters())


def _weight(p: Tensor, learns: bool) -> Tensor:
    return p if learns else p.detach()
