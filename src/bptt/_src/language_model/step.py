"""One update of a language model: from a batch of tokens to the new weights."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils import get_total_norm

from bptt import Stream
from bptt._src.language_model.embedding_rows import AllRows, UsedRows
from bptt._src.language_model.gradient_sum import GradientSum, Share
from bptt._src.language_model.job import Job
from bptt._src.language_model.model import LanguageModel
from bptt.credit import Credit
from bptt.memory import Memory


class Taken(NamedTuple):
    """The result of a step."""

    loss: float
    """The batch's loss in nats per token, before the update."""
    norm: float
    """The gradient's norm, of the scaled loss, before clipping."""
    stream: Stream
    """The state of the streams after the batch, without a graph."""
    own_loss: float
    """The part of the loss that comes from this process's sequences."""
    votes: list[float]
    """The sums of the votes of all processes."""


def loss_of(
    model: LanguageModel,
    inputs: Int[Tensor, "time batch"],
    targets: Int[Tensor, "time batch"],
    stream: Stream,
    *,
    credit: Credit | None = None,
    memory: Memory | None = None,
    reach_back: int = 0,
    generator: torch.Generator | None = None,
    total: int | None = None,
    bf16: bool = False,
) -> tuple[Float[Tensor, ""], Stream]:
    """Compute a batch's mean loss, without storing the logits, and the streams after it.

    Args:
        model: the model.
        inputs: token numbers, [T, B].
        targets: the token after each input, [T, B]; ``bptt.data.IGNORED`` where there is none.
        stream: the state of the streams before the batch.
        credit: how far back the losses are credited; within the batch, unless earlier steps are
            run again.
        memory: what the backward pass keeps of the recurrent layers.
        reach_back: number of steps before the batch to run again; the batch's losses reach all
            of them.
        generator: draws what is random in the credit; torch's own by default.
        total: the number of targets that the sum of the losses is divided by, where the batch is
            one process's share of another; None: those of the batch.
        bf16: whether products may be of bfloat16, by autocast on the CPU.
    """
    reduction = "mean" if total is None else "sum"
    how: dict[str, Any] = {"credit": credit, "memory": memory, "generator": generator}
    asked = {"targets": targets, "reduction": reduction, "reach_back": reach_back}
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss, after = model(inputs, stream, **asked, **how)
    return loss if total is None else loss / total, after


class TrainingStep:
    """A step of gradient descent, in as few passes over the weights as possible.

    The logits are never stored (:func:`bptt.losses.linear_cross_entropy`), and the gradient is
    clipped while it is read for the update. An embedding that is not tied to the readout has a
    gradient with one row for each token of the batch. Plain SGD, without momentum and weight decay,
    keeps no state and leaves a weight alone if its gradient is zero: it is one operation per
    parameter, and only those rows of the embedding change. Any other optimizer is torch's own, and
    updates all rows of the embedding, or those that have a gradient
    (:mod:`bptt._src.language_model.embedding_rows`).

    Args:
        model: the model to train.
        optimizer: one of torch's, over all of the model's parameters, with ``fused=True``.
        clip: clip the gradient to this norm; 0: no clipping.
        job: the processes that have a share of each batch; alone by default.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        clip: float,
        job: Job | None = None,
    ) -> None:
        self.model, self.optimizer, self.clip = model, optimizer, clip
        self.parameters = list(model.parameters())
        table = model.embedding
        self.is_plain = _is_plain(optimizer) and _is_on_cpu(table.weight)
        self.rows = UsedRows() if model.config.embedding_rows == "used" else AllRows()
        # A row-sparse gradient, with one row for each token of the batch.
        table.sparse = _is_on_cpu(table.weight) and not model.config.tied
        self.sum = None
        if job is not None and not job.is_alone:
            self.sum = GradientSum(job, self.parameters, table)

    def __call__(
        self,
        inputs: Int[Tensor, "time batch"],
        targets: Int[Tensor, "time batch"],
        stream: Stream,
        rate: float,
        share: Share | None = None,
        scale: float = 1.0,
        **how: Any,
    ) -> Taken:
        """Take a step, unless the loss or the gradient is not finite.

        Args:
            inputs: token numbers, [T, B].
            targets: the token after each input, [T, B]; ``bptt.data.IGNORED`` where there is none.
            stream: the state of the streams before the batch.
            rate: the learning rate.
            share: what there is to know of the whole batch, where several processes share it.
            scale: what the mean loss is multiplied by before it is differentiated.
            how: ``credit``, ``memory``, ``reach_back`` and ``bf16``, as for :func:`loss_of`.
        """
        total = None if share is None else share.tokens
        loss, after = loss_of(self.model, inputs, targets, stream, total=total, **how)
        for p in self.parameters:
            p.grad = None
        (loss if scale == 1 else loss * scale).backward()
        own = whole = float(loss.detach())
        votes: list[float] = []
        if self.sum is not None and share is not None:
            whole, votes = self.sum(loss.detach(), share)
        taken = Taken(whole, self.norm(), after, own, votes)
        if math.isfinite(taken.loss) and math.isfinite(taken.norm):
            self.update(rate, taken.norm)
        return taken

    def norm(self) -> float:
        """Compute the gradient's norm over all parameters together."""
        table = self.model.embedding.weight
        if table.grad is not None and table.grad.is_sparse:
            table.grad = table.grad.coalesce()  # one row for a token that occurs twice
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return float(get_total_norm([g.values() if g.is_sparse else g for g in gradients]))

    @torch.no_grad()
    def update(self, rate: float, norm: float) -> None:
        """Update the weights with the gradient, clipped to the norm ``clip``."""
        shorten = max(1.0, (norm + 1e-6) / self.clip) if self.clip else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.is_plain:
            for p in self.parameters:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-rate / shorten)
            return
        # torch.amp's divisor, applied while the optimizer reads the gradient.
        self.optimizer.grad_scale = torch.tensor(shorten) if shorten > 1 else None  # type: ignore[attr-defined]
        table = self.model.embedding.weight
        if table.grad is not None and (table.grad.is_sparse or isinstance(self.rows, UsedRows)):
            self.rows.step(self.optimizer, table)
        else:
            self.optimizer.step()


def _is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer keeps no state and leaves a weight alone if its gradient is zero."""
    return isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] or group["weight_decay"] for group in optimizer.param_groups
    )


def _is_on_cpu(t: Tensor) -> bool:
    return t.device.type == "cpu"
