"""Small trainings, each the same however many processes share it; and a script that runs them."""

from __future__ import annotations

import itertools
import random
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bptt import Plan
from bptt.credit import Credit
from bptt.language_model import Config, evaluate, resume, start

CELLS = ("rnn", "gru", "lstm", "mgu", "peephole-lstm")
UPDATES = 12
SMALL: dict[str, Any] = {
    "hidden": 6,
    "steps": 7,
    "batch_size": 5,
    "epochs": 2,
    "optimizer": "sgd",
    "learning_rate": 0.5,
    "threads": 1,
    "flow_every": 4,
    "save_every": 1000.0,
}


class Drawn(Credit):
    """A credit of one's own, which draws for each sequence."""

    def plan(self, steps: int, batch: int = 1, generator: Any = None) -> Plan:
        return Plan(steps, torch.rand(steps, batch, generator=generator).numpy())


def _streams(**options: Any) -> dict[str, Any]:
    return {**SMALL, **options}


def _sequences(**options: Any) -> dict[str, Any]:
    return {**{k: v for k, v in SMALL.items() if k != "steps"}, "reading": "lines", **options}


def _own_windows(**options: Any) -> dict[str, Any]:
    return {k: v for k, v in _streams(**options).items() if k != "steps"}


TRAININGS: dict[str, dict[str, Any]] = {
    **{f"{cell}, streams": _streams(cell=cell) for cell in CELLS},
    **{f"{cell}, lines": _sequences(cell=cell) for cell in CELLS},
    "sentences": _sequences(reading="sentences"),
    "random windows": _streams(sampling="random"),
    "two layers, dropout": _streams(layers=2, dropout=0.3),
    "two layers, dropout, lines": _sequences(layers=2, dropout=0.3, cell="gru"),
    "dropout, earlier steps run again": _own_windows(
        dropout=0.3, credit="truncated:every=4,reach=9"
    ),
    "dropout, recomputed": _streams(layers=2, dropout=0.3, memory="recompute:3"),
    "zoneout": _streams(layers=2, zoneout=0.3),
    "zoneout, lines": _sequences(zoneout=0.3, cell="gru"),
    "tied": _streams(tied=True),
    "few rows": _streams(steps=2),
    "few rows, adam": _streams(steps=2, optimizer="adam", learning_rate=0.01),
    "few rows, momentum": _streams(steps=2, momentum=0.9, learning_rate=0.1),
    "few rows, earlier steps run again": _own_windows(credit="truncated:every=2,reach=4"),
    "few entries": _streams(level="char"),
    "truncated": _streams(credit="truncated:3"),
    "windows that overlap": _sequences(credit="truncated:every=2,reach=5"),
    "earlier steps run again": _own_windows(credit="truncated:every=4,reach=9"),
    "randomized": _streams(credit="randomized:4"),
    "randomized, lines": _sequences(credit="randomized:4"),
    "randomized, shared": _streams(credit="randomized:4,shared=True"),
    "adaptive": _own_windows(credit="adaptive:0.5,start=8,most=12"),
    "own credit": _streams(credit="ranks.trainings.Drawn"),
    "momentum": _streams(momentum=0.9, learning_rate=0.1),
    "adam": _streams(optimizer="adam", learning_rate=0.01, clip=0),
    "adam of the rows that are used": _streams(
        optimizer="adam", embedding_rows="used", learning_rate=0.01
    ),
    "adamw, warm-up, cosine": _streams(
        optimizer="adamw", learning_rate=0.01, warmup=5, schedule="cosine", weight_decay=0.1
    ),
    "evaluated often": _streams(eval_every=2, patience=50),
    "one batch is short": _sequences(batch_size=10),
}
"""Options of each by a name."""


def text(path: Path) -> Path:
    """Write a small text, the same every time; its sentences have 4 to 9 words."""
    draw = random.Random(0)
    names = ["".join(p) for p in itertools.product("bdk", "aeo", "nl", ["", "i"])]
    lines = [" ".join(draw.choices(names, k=draw.randint(4, 9))) + ".\n" for _ in range(57)]
    path.write_text("".join(lines))
    return path


def train(name: str, book: Path, out: Path, *, updates: int | None = UPDATES) -> dict[str, Any]:
    """Train, as many updates as said or to the end, and return what came of it."""
    config = Config(corpus=(str(book),), **TRAININGS[name])
    with closing(start(config, out)) as training:
        return _fitted(training, updates)


def go_on(out: Path, *, updates: int | None = UPDATES) -> dict[str, Any]:
    """Go on with a training."""
    with closing(resume(out, allow_code=True)) as training:
        return _fitted(training, updates)


def _fitted(training: Any, updates: int | None) -> dict[str, Any]:
    losses: list[float] = []
    until = None if updates is None else training.progress.updates + updates

    class Noted(type(training.watch)):  # type: ignore[misc]
        def updated(self, training: Any, loss: float) -> None:
            losses.append(loss)

    training.watch = Noted()
    shares = []
    update = training.update

    def counted(batch: Any, *rest: Any) -> float:
        shares.append(batch.inputs.shape[1])
        return float(update(batch, *rest))

    training.update = counted
    before = training.step.update

    def stop() -> str | None:
        # With several processes this is asked during the update, alone after it.
        done = training.progress.updates + (not training.job.is_alone)
        return "enough" if until is not None and done >= until else None

    training.fit(stop)
    assert training.step.update == before
    score = training.evaluate()
    alone = evaluate(training.model, training.text.valid, batch_size=training.config.batch_size)
    assert score == alone  # to the bit, whoever computed which part
    return {
        "losses": losses,
        "weights": {k: v.clone() for k, v in training.model.state_dict().items()},
        "valid": score.loss,
        "credit": training.credit.state_dict(),
        "progress": (training.progress.updates, training.progress.tokens),
        "shares": shares,
        "random": torch.get_rng_state(),
    }


def main() -> None:
    """``trainings.py DIRECTORY train|go_on NAMES...``, started by torchrun."""
    directory, what = Path(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = {}
    for name in TRAININGS if sys.argv[3:] == ["all"] else sys.argv[3:]:
        out = directory / f"{name} {size}"
        if what == "train":
            found[name] = train(name, directory / "book.txt", out)
        else:
            found[name] = go_on(directory / name)
    torch.save(found, directory / f"{what}-{size}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
