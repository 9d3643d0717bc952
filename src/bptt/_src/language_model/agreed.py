"""What the processes of a training ask for and decide, each knowing what the others know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bptt._src.language_model.gradient_sum import Share
from bptt._src.language_model.job import Job
from bptt._src.language_model.tensors import digest_of
from bptt.data import Batch, Sentences, Streams
from bptt.errors import ElsewhereError, RanksError

Stop = Callable[[], "str | None"]


class Agreed:
    """Decisions of all processes, which are asked for in the message that sums the gradients.

    Args:
        job: the processes.
        vocabulary: the number of the embedding's rows; 0: all of them are sent, as the readout's.
    """

    def __init__(self, job: Job, vocabulary: int) -> None:
        self.job, self.vocabulary = job, vocabulary
        self.past: Tensor | None = None  # of all processes, where updates run it again
        self.votes = [0.0, 0.0]
        self._asked: str | None = None

    def share(
        self, batch: Batch, reader: Streams | Sentences, reach_back: int, stop: Stop, due: bool
    ) -> Share | None:
        """Return what a process knows of a batch that it has a share of, and what it asks for.

        Args:
            batch: its share.
            reader: the reader of the batch.
            reach_back: the number of steps before the batch that the update runs again.
            stop: returns the reason to stop training, if there is one.
            due: whether a checkpoint is due; rank 0's clock counts.
        """
        if self.job.is_alone:
            return None
        self._asked = stop()
        asks = [float(self._asked is not None), float(due and self.job.is_first)]
        past, self.past = self.past, None
        steps = len(batch.inputs) + (0 if past is None else len(past))
        rows = None
        if reach_back or steps * batch.size < self.vocabulary:
            inputs = reader.whole().inputs
            if reach_back:
                inputs = inputs if past is None or batch.fresh else torch.cat([past, inputs])
                self.past = inputs[-reach_back:]
            if inputs.numel() < self.vocabulary:
                rows = inputs.unique()
        return Share(batch.total, rows, asks)

    def to_save(self, due: bool) -> bool:
        """Whether to write a checkpoint now."""
        return due if self.job.is_alone else bool(self.votes[1])

    def to_stop(self, stop: Stop) -> str | None:
        """Why to stop training now: of several processes, what the first that asked for it says."""
        if self.job.is_alone:
            return stop()
        if not self.votes[0]:
            return None
        return next(asked for asked in self.job.exchange(self._asked) if asked is not None)

    def check_same(self, tensors: dict[str, Tensor], when: str) -> None:
        """Make sure that all have the same weights, and have drawn the same numbers.

        Raises:
            RanksError: they have not; on the others than rank 0 an ElsewhereError.
        """
        if self.job.is_alone:
            return
        digests = self.job.exchange(digest_of(tensors))
        other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            what = (
                f"{when}, rank {', '.join(other)} no longer has the weights of rank 0: machines "
                "that round differently cannot train together; the last checkpoint is kept"
            )
            raise RanksError(what) if self.job.is_first else ElsewhereError(what)
