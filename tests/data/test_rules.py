"""Tokenizers of other programs: the harmless are taken, and those that may do harm are refused."""

from __future__ import annotations

import json

import pytest

from bptt._src.data.rules import _agree, check_rules
from bptt._src.data.tokenizer import Tokenizer

VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "▁": 3, "▁a": 4, "Ġ": 5}
WORDS = {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "<unk>"}


def pieces(**parts):
    return {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##"} | {
        "max_input_chars_per_word": 100, "vocab": VOCABULARY, **parts
    }  # fmt: skip


def pairs(**parts):
    merges = [["▁", "a"]]
    return {"type": "BPE", "vocab": VOCABULARY, "merges": merges, "unk_token": "<unk>", **parts}


def unigram(*entries, unk_id=0):
    vocab = [["<unk>", 0.0], ["a", -1.0], *entries]
    return {"type": "Unigram", "vocab": vocab, "unk_id": unk_id, "byte_fallback": False}


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def many(name, *parts):
    return {"type": "Sequence", name: list(parts)}


def template(*single):
    single = [{"Sequence": {"id": name, "type_id": 0}} for name in single]
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}


def metaspace(sign):
    return {"type": "Metaspace", "replacement": sign, "prepend_scheme": "always", "split": True}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True} | {
    "strip_accents": None, "lowercase": True
}  # fmt: skip
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
NFKD, LOWER, SPACES = {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "WhitespaceSplit"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def written(**parts):
    document = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    document |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    return json.dumps({**document, "model": WORDS, **parts})


HARMLESS = {
    "words": {},
    "as BERT": {
        "normalizer": BERT,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": pieces(),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
    "as GPT-2": dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), BYTES)
    | {"model": pairs(unk_token=None)},
    "as Llama": {
        "normalizer": many(
            "normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")
        ),
        "pre_tokenizer": None,
        "model": pairs(fuse_unk=True, byte_fallback=True),
        "post_processor": template("A"),
        "decoder": many(
            "decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP
        ),
    },
    "as T5": {
        "normalizer": many("normalizers", replace("``", '"'), NFKD, LOWER),
        "pre_tokenizer": many("pretokenizers", SPACES, metaspace("▁")),
        "model": unigram(["▁", -2.0], ["▁a", -1.5]),
        "decoder": metaspace("▁"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_ones_are_taken_and_work(name):
    text = written(**HARMLESS[name])
    check_rules(text)
    tokenizer = Tokenizer.from_json(text)
    check_rules(tokenizer.to_json())
    assert len(tokenizer.encode("a" * 90 + " é" + " a b" * 3000)) < 50_000
    assert "a" in tokenizer.decode([1, 1, 0])


GROWS = {
    "doubles": ("normalizer", many("normalizers", *[replace("a", "aa")] * 30), "2 characters in"),
    "in the decoder": ("decoder", many("decoders", *[replace("a", "aa")] * 30), "2 characters in"),
    "a megabyte": ("normalizer", replace("a", "b" * 10**6), "1000000 characters in the place of 1"),
    "for nothing": ("normalizer", replace("", "b"), "looks for an empty text"),
    "split": ("pre_tokenizer", {**SPLIT, "pattern": {"String": ""}}, "looks for an empty text"),
    "bytes of bytes": (
        "normalizer", many("normalizers", *[{"type": "ByteLevel"}] * 24), "more than one ByteLevel"
    ),
    "and again": ("pre_tokenizer", many("pretokenizers", BYTES, BYTES), "more than one ByteLevel"),
    "nested": (
        "pre_tokenizer",
        many("pretokenizers", BYTES, many("pretokenizers", BYTES)),
        "more than one ByteLevel",
    ),
    "forms": (
        "normalizer",
        many("normalizers", NFKD, replace("\u0627", "\ufdfa"), {"type": "NFKC"}),
        "more than one NFC or NFD or NFKC or NFKD",
    ),
    "lower": ("normalizer", many("normalizers", LOWER, replace("i", "İ"), LOWER), "one Lowercase"),
    "ideographs": ("normalizer", many("normalizers", BERT, BERT), "more than one BertNormalizer"),
    "signs": (
        "pre_tokenizer", many("pretokenizers", metaspace("a"), metaspace("b")), "one Metaspace"
    ),
    "before": ("normalizer", {"type": "Prepend", "prepend": "a" * 33}, "more than 32 characters"),
    "parts": ("normalizer", many("normalizers", *[replace("x", "y")] * 10**4), "10001 parts"),
    "again": ("post_processor", template("A", "A"), "repeats the text"),
    "deeper": ("post_processor", many("processors", template("A", "A")), "repeats the text"),
}  # fmt: skip

REGEX = {"Regex": "(a|aa)+$"}
CANNOT = {
    "regex": ("normalizer", {"type": "Replace", "pattern": REGEX, "content": ""}, "regular expr"),
    "split regex": ("pre_tokenizer", {**SPLIT, "pattern": REGEX}, "regular expression"),
    "no kind": ("normalizer", {"pattern": {"String": "a"}, "content": "aa"}, "does not say its k"),
    "charsmap": ("normalizer", {"precompiled_charsmap": "AAAA"}, "does not say its kind"),
    "a list of kinds": ("normalizer", {"type": ["NFC"]}, "does not say its kind"),
    "unheard": ("post_processor", {"type": "Unheard"}, "of the kind 'Unheard'"),
    "blanks": ("decoder", {"type": "CTC", "pad_token": "a"}, "of the kind 'CTC'"),
    "ends": ("decoder", {**STRIP, "stop": 5}, "strips the end of each token"),
    "not a text": ("normalizer", {"type": "Prepend", "prepend": 7}, "and there is int"),
    "nor a pattern": ("normalizer", replace(["a"], "a"), "and there is list"),
    "long words": ("model", pieces(max_input_chars_per_word=10**9), "longer than 256 characters"),
    "words of no number": ("model", pieces(max_input_chars_per_word="9"), "longer than 256"),
    "prefix": ("model", pieces(continuing_subword_prefix="#" * 99), "longer than 32"),
    "no prefix": ("model", pieces(continuing_subword_prefix=7), "and there is int"),
    "suffix": ("model", pairs(end_of_word_suffix="x" * 10**6), "end_of_word_suffix is longer"),
    "long entry": ("model", unigram(["a" * 257, -1.0]), "an entry is longer than 256"),
    "no entry": ("model", unigram([{}, -1.0]), "and there is dict"),
    "no unknown": ("model", unigram(unk_id=None), "it has no unknown token"),
    "nor here": ("model", pairs(unk_token="zz"), "unknown token is not in its vocabulary"),
    "nor a name": ("model", pairs(unk_token=[]), "and there is list"),
    "dropout": ("model", pairs(dropout=float("nan")), "dropout"),
    "merges": ("model", pairs(merges={}), "merges are not a list"),
    "kinds": ("model", {"vocab": VOCABULARY}, "does not say its kind"),
    "numbers": ("added_tokens", [{"id": 10**9, "content": "z"}], "not numbered from 0 on"),
}


@pytest.mark.parametrize("name", [*GROWS, *CANNOT])
def test_harmful_ones_are_refused(name):
    part, value, match = {**GROWS, **CANNOT}[name]
    with pytest.raises(ValueError, match=match) as caught:
        check_rules(written(**{part: value}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_text_and_a_regular_expression_are_not_the_same_rule():
    ours, theirs = {"pattern": {"String": "a+"}}, {"pattern": {"Regex": "a+"}}
    assert _agree(ours, ours)
    assert not _agree(ours, theirs)
    assert not _agree(theirs, ours)
