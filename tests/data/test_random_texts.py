"""Texts of any characters, at every level and in every reading."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from bptt._src.data.tokens import as_encoded, batches, units
from bptt.data import LEVELS, READINGS, Tokenizer

CHARACTERS = [
    *"abcde ABC  ...,;:!?'\"()-\n\n\n\t0123456789#*<>",
    *"éüßñ",
    *"今天気。！？」",
    *"می‌خو",  # with a joiner
    *"Θέ;",
    "👨‍👩‍👧",
    "👍🏽",
    "❤️",
    "🇫🇷",
    "e\u0301",
    "\u00ad",
    "\u200b",
    "\u200f",
    "<unk>",
    "<s>",
    "</s>",
    "\x0b",
    "\u2028",
    "\u3000",
    "\U0010ffff",
]


def random_text(draw: random.Random) -> str:
    some = draw.sample(CHARACTERS, draw.randint(2, 12))
    return "a" + "".join(draw.choices(some, k=draw.randint(1, 300)))


def cut(text: str, draw: random.Random) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + draw.randint(1, 80)
        yield text[start:end]
        start = end


def check(seed: int) -> None:
    draw = random.Random(seed)
    text, level, reading = random_text(draw), draw.choice(LEVELS), draw.choice(READINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt._src.data.sequences.LONGEST", draw.choice([20, 100, 1 << 18]))
        if reading == "stream":
            patch.setattr("bptt._src.data.chunks.SIZE", draw.choice([30, 1 << 16]))
        parts = list(units([text], reading))
        assert parts == list(units(cut(text, draw), reading)), seed
        kinds = [type(part) for part in parts]
        assert kinds == [type(part) for part in units(cut(text, draw), reading)], seed
        assert list(itertools.chain(*batches(parts))) == parts
        if reading == "stream":
            assert "".join(parts) == text
        else:
            assert "".join("".join(parts).split()) == "".join(text.split()), seed
        if not "".join(parts).strip():
            return
        encoded = [as_encoded(part, reading) for part in parts]
        check_vocabulary(encoded, level, reading, seed)


def check_vocabulary(encoded: list[str], level: str, reading: str, seed: int) -> None:
    vocabulary = 300 if level == "bpe" else None
    tokenizer = Tokenizer.train(
        iter(encoded), level=level, vocabulary=vocabulary, sentences=reading != "stream"
    )
    for part, ids in zip(encoded, tokenizer.encode_batch(encoded), strict=True):
        back = tokenizer.decode(ids.tolist())
        if level in ("word", "whitespace"):
            assert "".join(back.split()) == "".join(part.split()), seed
        else:
            assert back == part, seed
        assert not {tokenizer.start, tokenizer.end} & set(ids.tolist()) - {None}
        assert tokenizer.unknown not in ids or "<unk>" in part, seed
    if reading != "stream" and level == "word":
        special = ("<unk>", "<s>", "</s>")
        for entry in map(tokenizer.token, range(tokenizer.size)):
            assert entry in special or any(entry in part for part in encoded), seed


def test_what_holds_for_random_texts() -> None:
    for seed in range(300):
        check(seed)


@pytest.mark.long
def test_what_holds_for_many_random_texts(survived) -> None:  # type: ignore[no-untyped-def]
    for seed in range(1000, 6000):
        check(seed)
    survived("random texts at every level and reading", 5000)
