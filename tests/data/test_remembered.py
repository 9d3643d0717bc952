"""Encoding and counting piece by piece give what the library gives for the whole text."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from bptt._src.data import remembered
from bptt._src.data.remembered import count_words, pieces_of
from bptt._src.data.vocabulary import backend_of, word_model
from bptt._src.data.words import UNKNOWN
from bptt.data import Tokenizer
from bptt.errors import CorpusError

NASTY = [
    *"abcde ABC  ...,;:!?'\"()-\n\n\n\t0123456789#*<>éß今。\x0b\u2028\u3000",
    *("👨‍👩‍👧", "👍🏽", "❤️", "🇫🇷", "e\u0301", "\u00ad", "\u200b", "\u200f", "<unk>", "<s>", "</s>"),
    *"\x1c\x1f\x85\r\u180e\u200d\ufe0f\u0301İΣ\u0600\u06dd\U000110bd\t\t ",
    *("'s", " 's", "'t ", "🇫", "क्‍ष", "क्"),
]


def texts_of(draw: random.Random) -> list[str]:
    some = draw.sample(NASTY, draw.randint(2, 14))
    return ["".join(draw.choices(some, k=draw.randint(1, 200))) for _ in range(4)]


@pytest.mark.parametrize("most", [remembered.MOST, 30])
@pytest.mark.parametrize("level", ["word", "bpe"])
def test_random_texts_have_the_librarys_ids(
    level: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MOST", most)
    compared = 0
    for seed in range(150):
        draw = random.Random(seed)
        texts, options = texts_of(draw), {"lowercase": seed % 3 == 0, "sentences": seed % 2 == 0}
        try:
            ours = Tokenizer.train(
                texts[:2], level=level, vocabulary=300 if level == "bpe" else 12, **options
            )
        except CorpusError:  # all white space
            continue
        library = tokenizers.Tokenizer.from_str(ours.to_json())
        library.encode_special_tokens = True
        expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
        assert [ours.encode(text) for text in texts * 2] == expected * 2, seed
        assert [ids.tolist() for ids in ours.encode_batch(texts)] == expected, seed
        compared += 1
    assert compared > 140
    assert ours._pieces is not None


@pytest.mark.parametrize("counted", [remembered.COUNTED, 100])
def test_words_are_counted_as_they_are_found(counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "COUNTED", counted)
    for seed in range(150):
        draw = random.Random(seed)
        texts = texts_of(draw)
        backend = backend_of("word", word_model([UNKNOWN]), seed % 3 == 0, seed % 2 == 0)
        expected: Counter[str] = Counter()
        for text in texts:
            normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
            expected.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
        assert count_words(backend, texts) == expected, seed


def test_a_text_is_its_pieces() -> None:
    assert pieces_of("a  b\n\nc \n") == ["a", "  b", "\n\nc", " \n"]
    assert pieces_of("a\x1cb") is None  # white space for Python alone
    assert pieces_of("a\u0600 b") is None  # the sign and the space are one character


def test_an_interrupt_leaves_nothing_half_known(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(["one two three four"], level="word")
    pieces = tokenizer._pieces
    assert pieces is not None
    learn = pieces._learn

    def learn_and_be_interrupted(new: list[str]) -> None:
        learn(new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_learn", learn_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.encode("one two")
    ids = tokenizer.encode("one two three four")
    assert [tokenizer.token(i) for i in ids] == ["one", "two", "three", "four"]


def test_tokenizers_of_others_are_left_to_the_library() -> None:
    ours = json.loads(Tokenizer.train(["one two three"], level="word").to_json())
    assert Tokenizer.from_json(json.dumps(ours))._pieces is not None
    template = processors.TemplateProcessing("$A <unk>", special_tokens=[(UNKNOWN, 0)])
    others = {
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": json.loads(template.__getstate__()),
        "added_tokens": [
            {
                **{"id": 0, "content": UNKNOWN, "special": False},
                **dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False),
            }
        ],
    }
    for name, value in others.items():
        assert Tokenizer.from_json(json.dumps({**ours, name: value}))._pieces is None, name
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert Tokenizer(backend)._pieces is None  # two times the same word need not be the same
