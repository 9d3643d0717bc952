"""The tokenizers that a run may have: those that `bptt train` makes, and harmless ones of others.

A file of the tokenizers library is a program: its regular expressions can run for ever, its parts
can double the text again and again, and its ids can ask for any amount of memory. A run may come
from a stranger. So of other programs' files those are taken whose parts are among
:data:`_HARMLESS`, have no regular expression of their own, and cannot make the text many times
longer.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
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
    vocabulary = model.pop("vocab")
    ids = _ids(vocabulary, found.get("added_tokens"))
    if any(type(i) is not int for i in ids) or {*ids} != {*range(len({*ids}))}:
        raise ValueError("its entries are not numbered from 0 on")
    merges = model.pop("merges", [])
    if not isinstance(merges, list):
        raise ValueError("its merges are not a list")
    rules = {**found, "model": model}
    if not any(_agree(rules, ours) for ours in _ours()):
        _check_others(rules)
        _check_model(rules["model"], vocabulary)


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
    "post_processor": {
        *("Sequence", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"),
    },
    "decoder": {
        *("Sequence", "ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "Fuse", "Replace"),
        *("ByteFallback", "Strip"),
    },
}
"""Kinds of parts that take time and memory in proportion to the text, if each is there once."""

_ONCE: list[set[str]] = [
    *({"NFC", "NFD", "NFKC", "NFKD"}, {"Lowercase"}, {"BertNormalizer"}, {"Prepend"}),
    *({"ByteLevel"}, {"Metaspace"}),
]
"""Of each of these one, since it adds to the text: twenty of them can make it a million times as
long."""

_MOST_PARTS = 64
_LONGEST_WORD = 256
"""Characters of a word that WordPiece divides, in a time that grows with their cube; and of a
unigram model's entry, all of which are tried at each character."""
_LONGEST_ADDED = 32
"""Characters that are put before or after a word or a text."""


def _check_others(rules: dict[str, Any]) -> None:
    """Refuse another program's rules unless each part is harmless and gives one result."""
    if "Regex" in _keys([rules.get(name) for name in _HARMLESS]):
        raise ValueError("it has a regular expression of its own, which may run for ever")
    for name, kinds in _HARMLESS.items():
        parts = [*_parts(rules.get(name))]
        if any(type(part.get("type")) is not str for part in parts):
            raise ValueError(f"its {name} does not say its kind")
        if len(parts) > _MOST_PARTS:
            raise ValueError(f"its {name} has {len(parts)} parts, more than {_MOST_PARTS}")
        found = [part["type"] for part in parts]
        unknown = sorted({*found} - kinds)
        if unknown:
            raise ValueError(f"its {name} is of the kind {unknown[0]!r}, which bptt does not take")
        for once in _ONCE:
            if sum(kind in once for kind in found) > 1:
                what = " or ".join(sorted(once))
                raise ValueError(f"its {name} has more than one {what}, and so may swell a text")
        for part in parts:
            _check_part(name, part)


def _check_part(name: str, part: dict[str, Any]) -> None:
    """Refuse a part that makes a text many times longer, or cannot be used at all."""
    kind = part["type"]
    if kind in ("Replace", "Split"):
        pattern = part.get("pattern")
        old = _string(name, pattern.get("String") if isinstance(pattern, dict) else None)
        new = _string(name, part.get("content", ""))
        if not old:
            raise ValueError(f"its {name} looks for an empty text")
        if len(new) > len(old):
            raise ValueError(f"its {name} puts {len(new)} characters in the place of {len(old)}")
    if kind == "Prepend" and len(_string(name, part.get("prepend"))) > _LONGEST_ADDED:
        raise ValueError(f"its {name} puts more than {_LONGEST_ADDED} characters before a text")
    if kind == "Strip" and name == "decoder" and part.get("stop") != 0:
        raise ValueError(f"its {name} strips the end of each token, which not all have")
    if kind == "TemplateProcessing":
        for pieces in (part.get("single"), part.get("pair")):
            given = pieces if isinstance(pieces, list) else []
            texts = [str(piece) for piece in given if "Sequence" in _keys(piece)]
            if len({*texts}) < len(texts):
                raise ValueError(f"its {name} repeats the text")


def _check_model(model: dict[str, Any], vocabulary: Any) -> None:
    """Refuse a model that takes time without end, or that some texts cannot be given to."""
    if model.get("dropout"):
        raise ValueError("its model has dropout, so a text has no certain tokens")
    longest = model.get("max_input_chars_per_word", 0)
    if type(longest) is not int or longest > _LONGEST_WORD:
        raise ValueError(f"its words may be longer than {_LONGEST_WORD} characters")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(_string("model", model.get(name) or "")) > _LONGEST_ADDED:
            raise ValueError(f"its {name} is longer than {_LONGEST_ADDED} characters")
    if model["type"] == "Unigram":
        entries = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry]
        if any(len(_string("model", entry)) > _LONGEST_WORD for entry in entries):
            raise ValueError(f"an entry is longer than {_LONGEST_WORD} characters")
        if type(model.get("unk_id")) is not int:
            raise ValueError("it has no unknown token, so it cannot take every text")
    unknown = model.get("unk_token")
    if unknown is not None and _string("model", unknown) not in vocabulary:
        raise ValueError("its unknown token is not in its vocabulary")


def _string(name: str, value: Any) -> str:
    """Return a text, or refuse what stands in its place."""
    if not isinstance(value, str):
        raise ValueError(f"in its {name} a text is expected, and there is {type(value).__name__}")
    return value


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part and those inside it."""
    if isinstance(part, list):
        for one in part:
            yield from _parts(one)
    elif isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "decoders", "processors"):
            yield from _parts(part.get(name))


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


_DECISIVE = {
    "type",
    "pattern",
    "Regex",
    "String",
    "model",
    "normalizer",
    "pre_tokenizer",
    "decoder",
    "post_processor",
}
