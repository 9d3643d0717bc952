"""The sum of the processes' gradients, in one message, with whatever else they must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bptt._src.language_model.job import Job


class Share(NamedTuple):
    """What a process must know of a batch that it has a share of."""

    tokens: int
    """The number of targets that count, on all processes together."""
    rows: Tensor | None
    """The rows of the embedding that any process uses, ascending, [R]; None: all."""
    votes: Sequence[float]
    """Numbers to add up over the processes."""


class GradientSum:
    """Adds up the gradients of all processes.

    Of an embedding that is not tied to the readout only those rows are sent that the batch uses,
    if that is fewer numbers. All processes know these rows, because they know the whole batch.

    Args:
        job: the processes.
        parameters: the parameters, in the same order on all processes.
        embedding: the embedding, whose gradient may be sparse.
    """

    def __init__(self, job: Job, parameters: list[nn.Parameter], embedding: nn.Embedding) -> None:
        self.job, self.parameters, self.embedding = job, parameters, embedding
        self.flat = parameters[0].new_empty(0)

    @torch.no_grad()
    def __call__(self, loss: Tensor, share: Share) -> tuple[float, list[float]]:
        """Replace each gradient by the sum over all processes.

        Args:
            loss: this process's share of the batch's loss.
            share: what is to be summed, and for whom.

        Returns:
            The batch's loss, and the sums of the votes.
        """
        rows = None if share.rows is None else share.rows.to(self.flat.device)
        parts = [self._part(p, rows) for p in self.parameters]
        size = sum(part.numel() for part in parts) + 1 + len(share.votes)
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        flat = self.flat[:size]
        numbers = flat.new_tensor([float(loss), *share.votes])
        torch.cat([*(part.reshape(-1) for part in parts), numbers], out=flat)
        self.job.sum(flat)
        sums = flat.split([*(part.numel() for part in parts), len(numbers)])
        for p, part, summed in zip(self.parameters, parts, sums[:-1], strict=True):
            self._set(p, summed.view_as(part), rows)
        total, *votes = sums[-1].tolist()
        return total, votes

    def _part(self, p: nn.Parameter, rows: Tensor | None) -> Tensor:
        """What of a gradient is sent."""
        if p.grad is None:  # this process has no sequence in the batch
            return p.new_zeros(
                p.shape if rows is None or not self._is_table(p) else (len(rows), *p.shape[1:])
            )
        if rows is None or not self._is_table(p):
            return p.grad.to_dense() if p.grad.is_sparse else p.grad
        if not p.grad.is_sparse:
            return p.grad[rows]
        own = p.grad.coalesce()
        part = p.new_zeros(len(rows), *p.shape[1:])
        part[torch.searchsorted(rows, own.indices()[0])] = own.values()
        return part

    def _set(self, p: nn.Parameter, summed: Tensor, rows: Tensor | None) -> None:
        if rows is None or not self._is_table(p):
            p.grad = summed
        elif self.embedding.sparse:
            p.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), summed, p.shape, is_coalesced=True, check_invariants=False
            )
        else:
            p.grad = p.new_zeros(p.shape).index_copy_(0, rows, summed)

    def _is_table(self, p: nn.Parameter) -> bool:
        return p is self.embedding.weight
