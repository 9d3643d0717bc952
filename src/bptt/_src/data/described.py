"""What a tokenizer's JSON says: its entries, its level, its special tokens."""

from __future__ import annotations

from typing import Any

from bptt._src.data.words import END, SPACED, START, STREAM_SPACED

CHARACTER = r"[\s\S]"
_LEVELS = {CHARACTER: "char", SPACED: "whitespace", STREAM_SPACED: "whitespace"}
_MARKS = (  # start and end tokens, in files of bptt and of others
    (START, END),
    ("[CLS]", "[SEP]"),
    ("<bos>", "<eos>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|endoftext|>", "<|endoftext|>"),
)


def in_order(vocabulary: dict[str, int]) -> list[str]:
    """The entries by id; unused ids, which other programs' files may have, are empty entries."""
    entries = [""] * (max(vocabulary.values(), default=-1) + 1)
    for entry, i in vocabulary.items():
        entries[i] = entry
    return entries


def level_of(description: dict[str, Any]) -> str:
    """Return the level of a tokenizer from its JSON."""
    model = description["model"]
    pattern = (description["pre_tokenizer"] or {}).get("pattern")
    if model["type"] == "WordLevel":
        return _LEVELS.get(str((pattern or {}).get("Regex")), "word")
    if model["type"] == "BPE" and not model["merges"]:
        return "byte"
    return "bpe"


def unknown_of(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """Return the id of unknown tokens; None if there are none."""
    if model["type"] == "Unigram":
        unknown: int | None = model["unk_id"]
        return unknown
    entry = model.get("unk_token")
    if model["type"] == "WordLevel" and entry not in vocabulary:
        raise ValueError(f"its vocabulary lacks the unknown token {entry!r}")
    return vocabulary.get(entry) if entry else None


def marks_of(vocabulary: dict[str, int]) -> tuple[int | None, int | None]:
    """Return the ids of the tokens before and after a sentence; None where there are none."""
    for start, end in _MARKS:
        if start in vocabulary and end in vocabulary:
            return vocabulary[start], vocabulary[end]
    return None, None
