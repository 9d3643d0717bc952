"""Time an update of a language model with the full softmax and with an adaptive one.

    python benchmarks/softmax.py [VOCABULARY...]

An LSTM of 256, batches of 20 streams of 35 tokens, Adam, one thread; the tokens are drawn by Zipf's
law. Both take turns; printed are medians, and the median of the ratio of neighbours.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import bptt
from bptt.data import Tokenizer
from bptt.language_model import Config, LanguageModel

ROUNDS = 9


def updates(softmax: str, tokenizer: Tokenizer, tokens: torch.Tensor) -> Callable[[], None]:
    """Return what takes an update of a new model, on the same batch each time."""
    model = LanguageModel(tokenizer, Config(hidden=256, softmax=softmax))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def update() -> None:
        loss, _ = model(tokens[:-1], bptt.Stream(), targets=tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def main() -> None:
    """Print a line for each vocabulary."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for V in map(int, sys.argv[1:] or ("10000", "30000", "100000")):
        words = " ".join(f"w{n}" for n in range(V))
        tokenizer = Tokenizer.train([words], level="word", vocabulary=V)
        ranks = torch.arange(1, tokenizer.size + 1, dtype=torch.float64)
        tokens = torch.multinomial(1 / ranks, 36 * 20, replacement=True).view(36, 20)
        both = [updates(softmax, tokenizer, tokens) for softmax in ("full", "adaptive")]
        times: list[list[float]] = [[], []]
        for _ in range(1 + ROUNDS):
            for update, of in zip(both, times, strict=True):
                begun = time.perf_counter()
                update()
                of.append(1000 * (time.perf_counter() - begun))
        full, adaptive = (of[1:] for of in times)
        ratio = statistics.median(a / b for a, b in zip(full, adaptive, strict=True))
        print(
            f"vocabulary {V:,}: full {statistics.median(full):.0f} ms, adaptive "
            f"{statistics.median(adaptive):.0f} ms per update, {ratio:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
