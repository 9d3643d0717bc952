"""What it costs to see how far the gradient reaches while a language model trains."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import cycle

import numpy as np
import torch

from bptt import FlowMeter
from bptt._src.bench.models import BATCHES, Ours, synthetic_batches, words
from bptt._src.bench.result import HEARD, LOOK, TOLD, UPDATE, Row
from bptt._src.bench.shapes import ModelShape
from bptt._src.bench.timing import Effort, Pace, take_turns, timed
from bptt._src.language_model.monitor import Monitor, Reach, looks_every
from bptt.data import Tokens
from bptt.flow import LISTENS_EVERY
from bptt.language_model import Config

TEXT = 100_000  # tokens that are looked at


def share_of(row: Row) -> float:
    """Return what sight adds to training as ``bptt train`` does it, as a share of its time.

    It is told of each update, listens to the backward pass of one in ten, and looks at the text
    as often as it does by default. Each round has its own share; the median counts.
    """
    assert row.tokens is not None
    every = looks_every(row.tokens)
    columns = (row.seconds[name] for name in (UPDATE, TOLD, HEARD, LOOK))
    shares = [
        (told + (heard - update) / LISTENS_EVERY + look / every) / update
        for update, told, heard, look in zip(*columns, strict=True)
    ]
    return float(statistics.median(shares))


def measure_sight(shape: ModelShape, effort: Effort, pace: Pace) -> Row:
    """Time an update without sight, one that is listened to, being told of one, and a look.

    Args:
        shape: of the model and its windows.
        effort: how much.
        pace: how to stop.
    """
    torch.manual_seed(0)
    ours = Ours(shape)
    text = words(np.random.default_rng(1), shape.vocabulary, TEXT).astype(np.uint32)
    config = Config(batch_size=shape.batch)
    # It looks only when it is asked to.
    monitor = Monitor(ours.model, Tokens(text, None, TEXT, TEXT, 0), config, 10**9)
    listener = FlowMeter(ours.model.recurrent)  # listens to the first update, and is told of none
    batches = cycle(list(synthetic_batches(shape, BATCHES)))

    def update() -> float:
        return timed(partial(ours, *next(batches)))

    def heard() -> float:
        inputs, targets = next(batches)

        def listen() -> None:
            with listener.listening():
                ours(inputs, targets)

        return timed(listen)

    def told() -> float:
        return timed(partial(monitor.updated, 1.0, 1.0, 1, _whole))

    def look() -> float:
        return timed(partial(monitor.epoch_ended, 1, _whole))

    steps = {UPDATE: update, HEARD: heard, TOLD: told, LOOK: look}
    seconds = take_turns(steps, effort, pace)
    tokens = shape.batch * shape.steps
    return Row("sight", shape.name, str(shape), None, seconds, tokens=tokens, base=UPDATE)


def _whole(steps: int) -> Reach:
    """The reach of credit that cuts nothing."""
    return Reach(np.ones(steps), True)
