"""Train on texts with known figures, and print the results beside them.

    python benchmarks/known_texts.py DIRECTORY [NAME...] [--OPTION VALUE...]

DIRECTORY holds the texts; missing ones are skipped. NAME selects some of them. Options are those of
Config, in place of those below: --precision bf16 --seed 1 --epochs 2.

    tinyshakespeare.txt   characters, an LSTM of 256, the last tenth held out; beside it the best of
                          the interpolated n-gram models of up to 5 characters
    timemachine.txt       the first 10,000 characters, lower case, letters and spaces only, a GRU of
                          256, windows of 35: A. Zhang et al., Dive into Deep Learning, chapter 9
    comments.csv          column `body`, a vocabulary of 8000 words, sentence by sentence, a tanh
                          network of 100: the untrained loss is ln 8000 or less
    wikitext2.valid.txt   and wikitext2.test.txt, all words, an LSTM of 256, the last tenth held out
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bptt.language_model import Config, Run, start


def trained(config: Config, out: Path, instead: dict[str, Any]) -> tuple[Run, float]:
    """Train with some options in place of others; return the run and the seconds it took."""
    training, begun = start(config.changed(**instead), out), time.monotonic()
    training.fit()
    return training.run, time.monotonic() - begun


def best_n_gram(train: str, valid: str, most: int = 5) -> tuple[float, int]:
    """The smallest loss of n-gram models in nats per character, and its n.

    Each order is mixed with the one below by Witten and Bell's weights: a context seen N times
    and followed by D different characters gives N / (N + D) to its own frequencies.
    """
    alphabet = len(set(train)) + 1
    counts = [
        Counter(train[i : i + n] for i in range(len(train) - n + 1)) for n in range(1, most + 1)
    ]
    seen = [Counter[str]() for _ in range(most)]
    kinds = [Counter[str]() for _ in range(most)]
    for n, grams in enumerate(counts):
        for gram, count in grams.items():
            seen[n][gram[:-1]] += count
            kinds[n][gram[:-1]] += 1
    nats = [0.0] * most
    for i in range(most, len(valid)):
        p = 1 / alphabet
        for n in range(most):
            context = valid[i - n : i]
            total, different = seen[n][context], kinds[n][context]
            if total:
                p = (counts[n][context + valid[i]] + different * p) / (total + different)
            nats[n] -= math.log(p)
    losses = [x / (len(valid) - most) for x in nats]
    return min(losses), losses.index(min(losses)) + 1


def tinyshakespeare(path: Path, out: Path, instead: dict[str, Any]) -> None:
    """Characters, an LSTM of 256."""
    config = Config(
        corpus=(str(path),), level="char", cell="lstm", hidden=256, dropout=0.2,
        batch_size=32, steps=64, epochs=14,
    )  # fmt: skip
    run, seconds = trained(config, out, instead)
    best = min(m["valid_loss"] for m in run.metrics() if "valid_loss" in m)
    text = path.read_text(encoding="utf-8")
    cut = round(0.9 * len(text))
    n_gram, order = best_n_gram(text[:cut], text[cut:])
    print(
        f"tinyshakespeare: {best:.3f} nats per character on the last tenth after {seconds:.0f} s; "
        f"the best n-gram model, n = {order}: {n_gram:.3f}"
    )


def timemachine(path: Path, out: Path, instead: dict[str, Any]) -> None:
    """The experiment of Dive into Deep Learning."""
    letters = re.sub("[^a-z]+", " ", path.read_text(encoding="utf-8").lower())
    out.mkdir(parents=True)
    (out / "letters.txt").write_text(letters)
    config = Config(
        corpus=(str(out / "letters.txt"),), level="char", max_tokens=10_000, valid_fraction=0.05,
        cell="gru", hidden=256, batch_size=32, steps=35, epochs=200, schedule="constant",
    )  # fmt: skip
    run, seconds = trained(config, out / "run", instead)
    epochs = [m for m in run.metrics() if "epoch_perplexity" in m]
    last = epochs[-1]["epoch_perplexity"]
    first = next((m["epoch"] for m in epochs if m["epoch_perplexity"] < 1.5), None)
    print(
        f"timemachine: training perplexity {last:.3f} after {len(epochs)} epochs, {seconds:.0f} s; "
        f"below 1.5 first in epoch {first}"
    )


def comments(path: Path, out: Path, instead: dict[str, Any]) -> None:
    """The tutorials' own task."""
    config = Config(
        corpus=(str(path),), column="body", level="word", vocabulary=8000, reading="sentences",
        cell="rnn", hidden=100, epochs=3,
    )  # fmt: skip
    run, seconds = trained(config, out, instead)
    first = run.metrics()[0]["loss"]
    losses = [m["epoch_loss"] for m in run.metrics() if "epoch_loss" in m]
    V = run.text()["vocabulary"]
    print(
        f"comments: the first update's loss is {first:.3f} (ln {V} = {math.log(V):.3f}); then by "
        f"epoch {', '.join(f'{x:.3f}' for x in losses)}; {seconds:.0f} s"
    )


def wikitext2(path: Path, out: Path, instead: dict[str, Any]) -> None:
    """Words, all of them, an LSTM of 256."""
    config = Config(
        corpus=(str(path), str(path).replace("valid", "test")), vocabulary=100_000, hidden=256,
        dropout=0.2, epochs=4,
    )  # fmt: skip
    run, _ = trained(config, out, instead)
    best = min(m["valid_perplexity"] for m in run.metrics() if "valid_perplexity" in m)
    last = run.metrics()[-1]
    parameters = sum(p.numel() for p in run.load_model().parameters())
    print(
        f"wikitext2: validation perplexity {best:.1f}, vocabulary {run.text()['vocabulary']:,}, "
        f"{parameters:,} parameters, {1000 * last['seconds'] / last['update']:.0f} ms per update"
    )


JOBS = {
    "tinyshakespeare.txt": tinyshakespeare,
    "timemachine.txt": timemachine,
    "comments.csv": comments,
    "wikitext2.valid.txt": wikitext2,
}


def main() -> None:
    """Run the tasks whose texts exist."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*")
    for name in ("epochs", "seed", "hidden", "max_tokens", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name in ("precision", "softmax"):
        parser.add_argument(f"--{name}")
    given = vars(parser.parse_args())
    directory, wanted = given.pop("directory"), given.pop("names")
    instead = {name: value for name, value in given.items() if value is not None}
    for name, job in JOBS.items():
        path = directory / name
        if wanted and not any(name.startswith(w) for w in wanted):
            continue
        if not path.exists():
            print(f"{path} does not exist: skipped")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            job(path, Path(scratch) / "run", instead)


if __name__ == "__main__":
    main()
