"""The tokenizers that a run may have: those that `bptt train` makes, and harmless ones of others.

A file of the tokenizers library is a program: its regular expressions can run for ever, and its ids
can ask for any amount of memory. A run may come from a stranger. So of other programs' files those
are taken whose parts are among :data:`_HARMLESS`, which have no regular expression of their own.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

from bptt._src.data.counting import counting_tokenizer
from bptt._src.data.tokenizer import LEVELS, Tokenizer
from bptt._src.documents import parse_json


def check_rules(text: str) -> None:
    """Refuse the JSON of a tokenizer that may do harm, or whose ids are not those of one text.

    Raises:
        ValueError: its rules are neither bptt's nor harmless, its entries are not numbered from 0
            on, or it is not JSON.
    """
    found = parse_json(text)
    model = found.pop("model", None) if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ValueError("it holds no vocabulary")
    ids = _ids(model.pop("vocab"), found.get("added_tokens"))
    if any(type(i) is not int for i in ids) or {*ids} != {*range(len({*ids}))}:
        raise ValueError("its entries are not numbered from 0 on")
    merges = model.pop("merges", [])
    if not isinstance(merges, list):
        raise ValueError("its merges are not a list")
    rules = {**found, "model": model}
    if not any(_agree(rules, ours) for ours in _ours()):
        _check_others(rules)


def _ids(vocabulary: Any, added: Any) -> list[Any]:
    """The ids of all entries; those of a list, as of a unigram model, are their places."""
    if isinstance(added, list) and not all(isinstance(entry, dict) for entry in added):
        raise ValueError("its added tokens are no entries")
    more = [entry.get("id") for entry in added] if isinstance(added, list) else []
    if isinstance(vocabulary, list):
        return [*range(len(vocabulary)), *more]
    ids = [i for i in vocabulary.values() if type(i) is int]
    if len({*ids}) < len(ids):
        raise ValueError("its entries are not numbered from 0 on: two have the same number")
    return [*vocabulary.values(), *more]


_HARMLESS = {
    "model": {"WordLevel", "WordPiece", "BPE", "Unigram"},
    "normalizer": {
        *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents"),
        *("BertNormalizer", "Prepend", "Replace", "ByteLevel"),
    },
    "pre_tokenizer": {
        *("Sequence", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation"),
        *("Digits", "Metaspace", "ByteLevel", "Split", "CharDelimiterSplit"),
    },
    "decoder": {
        *("Sequence", "ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "Fuse", "Replace"),
        *("ByteFallback", "Strip"),
    },
}
"""Kinds of parts that take time and memory in proportion to the text."""


def _check_others(rules: dict[str, Any]) -> None:
    """Refuse another program's rules unless each part is harmless and gives one result."""
    for part, kinds in _HARMLESS.items():
        unknown = sorted(_kinds(rules.get(part)) - kinds)
        if unknown:
            raise ValueError(f"its {part} is of the kind {unknown[0]}, which bptt does not take")
    if rules["model"].get("type") is None:
        raise ValueError("its model does not say its kind")
    if "Regex" in _keys([rules.get(part) for part in _HARMLESS]):
        raise ValueError("it has a regular expression of its own, which may run for ever")
    if rules["model"].get("dropout"):
        raise ValueError("its model has dropout, so a text has no certain tokens")


def _kinds(part: Any) -> set[str]:
    """The kinds of a part and of those inside it."""
    if isinstance(part, list):
        return {kind for one in part for kind in _kinds(one)}
    if not isinstance(part, dict):
        return set()
    own = {str(part["type"])} if "type" in part else set()
    inner = [v for k, v in part.items() if k in ("normalizers", "pretokenizers", "decoders")]
    return own | _kinds(inner)


def _keys(part: Any) -> set[str]:
    """All names in nested objects."""
    if isinstance(part, list):
        return {key for one in part for key in _keys(one)}
    if not isinstance(part, dict):
        return set()
    return {*part} | _keys([*part.values()])


@functools.cache
def _ours() -> list[dict[str, Any]]:
    """The rules of each kind of tokenizer that bptt makes, without vocabulary and merges."""
    rules = []
    for level, sentences, lowercase in itertools.product(LEVELS, (False, True), (False, True)):
        if level == "bpe":
            made = Tokenizer.train(
                ["a"], level=level, vocabulary=300, sentences=sentences, lowercase=lowercase
            )
        else:
            made = counting_tokenizer(level, sentences=sentences, lowercase=lowercase)
        found = json.loads(made.to_json())
        for name in ("vocab", "merges"):
            found["model"].pop(name, None)
        rules.append(found)
    return rules


def _agree(a: Any, b: Any) -> bool:
    """Whether two rules are the same, except for fields that only one library version has."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return type(a) is type(b) and a == b
    return a.keys() & _DECISIVE == b.keys() & _DECISIVE and all(
        _agree(a[name], b[name]) for name in a.keys() & b.keys()
    )


_DECISIVE = {"type", "pattern", "model", "normalizer", "pre_tokenizer", "decoder", "post_processor"}
