"""An epoch of the job that the textbook's tutorial has: one sentence an update, full BPTT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from bptt._src.bench.models import Ours, Plain, Update, words
from bptt._src.bench.result import OURS, TEXTBOOK, TORCH, SeedEpoch
from bptt._src.bench.shapes import SEED
from bptt._src.bench.timing import Effort, Pace, timed
from bptt.textbook import Model

SENTENCES = 79_000  # that the tutorial's epoch has
LONGEST = 49  # words; from 1 on all lengths are as likely, so the mean is 25
TURN = 50  # sentences, before the next one has its turn


def measure_seed_epoch(effort: Effort, pace: Pace) -> SeedEpoch:
    """Time an epoch: some of its sentences, unless all are asked for.

    Args:
        effort: how many sentences.
        pace: how to stop; what is finished by then is given.
    """
    torch.manual_seed(0)
    sentences = made_up_sentences(effort.sentences)
    ours = Ours(SEED, carried=False)
    updates: dict[str, Update] = {OURS: ours, TORCH: Plain(ours.model, SEED, carried=False)}
    for update in updates.values():
        _train(update, sentences[:TURN])  # a warm-up, trained on again below
    textbook = _textbook(effort.textbook, pace)
    seconds, done = dict.fromkeys(updates, 0.0), 0
    for start in range(0, len(sentences), TURN):
        if done and pace.stopped():
            break
        some = sentences[start : start + TURN]
        for name, update in updates.items():
            seconds[name] += timed(partial(_train, update, some))
        done += len(some)
        pace.done(done / len(sentences))
    found = {name: (s, done) for name, s in seconds.items()}
    return SeedEpoch(SENTENCES, found | {TEXTBOOK: (textbook, effort.textbook)})


def _train(update: Update, sentences: Sequence[Any]) -> None:
    for s in sentences:
        update(s[:-1], s[1:])


def made_up_sentences(count: int) -> list[torch.Tensor]:
    """Draw sentences, each [T + 1, 1]: words as often as texts have them, of 1 to 49 steps."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, LONGEST + 1, count) + 1
    drawn = torch.from_numpy(words(random, SEED.vocabulary, int(lengths.sum())))
    return [s.clone().unsqueeze(1) for s in drawn.split(lengths.tolist())]


def _textbook(count: int, pace: Pace) -> float:
    """Return the seconds of the textbook's updates on sentences of evenly spread lengths.

    Its two loops go back from each loss separately, so a sentence's time grows faster than its
    length; lengths that were drawn would make a few sentences a poor sample.
    """
    model = Model(SEED.vocabulary, SEED.hidden, bptt_truncate=None, seed=0)
    random = np.random.default_rng(0)
    lengths = [max(1, round((n + 0.5) / count * LONGEST)) for n in range(count)]
    drawn = [words(random, SEED.vocabulary, length + 1) for length in lengths]
    seconds = 0.0
    for s in drawn:
        pace.check()
        seconds += timed(partial(model.sgd_step, s[:-1], s[1:], SEED.rate))
    return seconds
