"""Callbacks of a training, for whoever shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bptt._src.language_model.score import Score

if TYPE_CHECKING:
    from bptt._src.language_model.training import Training


class Watch:
    """Training callbacks; the base class does nothing. Override the ones you need."""

    def updated(self, training: Training, loss: float) -> None:
        """Called after each update with the loss of its batch, in nats per token."""

    def evaluated(self, training: Training, score: Score, is_best: bool) -> None:
        """Called after each evaluation on the validation text."""

    def measured(self, line: dict[str, Any]) -> None:
        """Called with each line of metrics.jsonl."""

    def rewound(self, training: Training, reason: str) -> None:
        """Called when training has diverged and is back at the last checkpoint, with the reason."""
