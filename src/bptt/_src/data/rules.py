"""The tokenizers that a run may have: those that `bptt train` makes.

A file of the tokenizers library is a program: its regular expressions can run for ever, and its ids
can ask for any amount of memory. A run may come from a stranger.
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
    """Refuse the JSON of a tokenizer that bptt does not make, whatever its vocabulary.

    Raises:
        ValueError: its rules differ, its entries are not numbered from 0 on, or it is not JSON.
    """
    found = parse_json(text)
    model = found.pop("model", None) if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError("it holds no vocabulary")
    ids = list(model.pop("vocab").values())
    if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise ValueError("its entries are not numbered from 0 on")
    merges = model.pop("merges", [])
    if not isinstance(merges, list):
        raise ValueError("its merges are not a list")
    rules = {**found, "model": model}
    if not any(_agree(rules, ours) for ours in _ours()):
        raise ValueError("it has other rules than the tokenizers that bptt makes")


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
