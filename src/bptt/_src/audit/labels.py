"""Which stream, step and episode each step of a call is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bptt._src.audit.reading import CallRead
from bptt._src.audit.record import HeardCall

Numbers = NDArray[np.int64]


class Labels:
    """What the user says of the steps.

    Args:
        label: ``(x [T, B, ...]) -> (stream, step)``, or None.
        episodes: numbers of episodes or their starts, or a function of x, or None.
    """

    def __init__(self, label: Callable[[Any], Any] | None, episodes: Any) -> None:
        self.function = label
        self.of_inputs = episodes if callable(episodes) else None
        self.table: Numbers | None = None
        if episodes is not None and self.of_inputs is None:
            self.table = _table(episodes)

    @property
    def has_episodes(self) -> bool:
        return self.of_inputs is not None or self.table is not None

    def label(self, call: HeardCall, read: CallRead) -> None:
        """Set a call's labels and episodes."""
        if self.function is None and self.of_inputs is None and self.table is None:
            return
        shape = (call.steps, call.batch)
        with torch.no_grad():
            x = read.inputs_by_step()
            if self.function is not None:
                found = self.function(x)
                if not isinstance(found, tuple) or len(found) != 2:
                    raise TypeError(
                        "bptt.audit: label must return (stream, step), two integers for each "
                        f"step [T, B] of x, got {type(found).__name__}"
                    )
                stream, step = (_numbers(v, shape, "label") for v in found)
                none = (stream < 0) | (step < 0)
                call.labels = np.where(none, -1, stream), np.where(none, -1, step)
            if self.of_inputs is not None:
                call.episodes = _numbers(self.of_inputs(x), shape, "episodes")
        if self.table is not None:
            call.episodes = self._from_table(call, shape)

    def _from_table(self, call: HeardCall, shape: tuple[int, int]) -> Numbers:
        assert self.table is not None
        if call.labels is not None:
            stream, step = call.labels
        else:
            step = np.broadcast_to(call.first + np.arange(call.steps)[:, None], shape)
            stream = np.broadcast_to(np.arange(call.batch), shape)
        rows, columns = self.table.shape
        if (step < 0).all():
            return np.full(shape, -1)
        if int(step.max()) >= rows or (columns > 1 and int(stream.max()) >= columns):
            raise ValueError(
                f"bptt.audit: episodes has {rows} steps of {columns} sequences, and the run has "
                f"step {step.max()} of sequence {stream.max()}; give one for each, or stop "
                "recording earlier by steps="
            )
        found: Numbers = self.table[step, stream if columns > 1 else 0]
        return np.where(step < 0, -1, found)


def _numbers(v: Any, shape: tuple[int, int], what: str) -> Numbers:
    """Return integers [T, B].

    Raises:
        TypeError: they are no integers.
        ValueError: they do not fit the inputs.
    """
    values = np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v)
    if values.dtype.kind == "f" and (values == np.round(values)).all():
        values = values.astype(np.int64)  # read out of inputs in floating point
    if values.dtype.kind not in "iub":
        raise TypeError(f"bptt.audit: {what} must return integers, got {values.dtype}")
    try:
        return np.array(np.broadcast_to(values, shape), np.int64)
    except ValueError:
        raise ValueError(
            f"bptt.audit: {what} must return one number for each step of x, "
            f"{list(shape)}, got {list(values.shape)}"
        ) from None


def _table(episodes: Any) -> Numbers:
    values = np.asarray(episodes.cpu() if isinstance(episodes, torch.Tensor) else episodes)
    if values.ndim not in (1, 2) or values.dtype.kind not in "iub" or not len(values):
        raise ValueError(
            "bptt.audit: expected episodes as integers or bools [T] or [T, B], or a function of "
            f"x, got {values.dtype} {list(values.shape)}"
        )
    values = values[:, None] if values.ndim == 1 else values
    is_start = values.dtype.kind == "b"
    return np.cumsum(values, 0) if is_start else values.astype(np.int64)
