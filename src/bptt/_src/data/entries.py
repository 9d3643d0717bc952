"""Entries of the cache of prepared texts: written as a whole, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.data.tokenizer import Tokenizer
from bptt._src.data.tokens import Tokens, TokenWriter
from bptt.errors import BpttError, BpttWarning

_PARTS = ("train", "valid")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, BpttError)
_STALE = 24 * 3600.0  # seconds after which an unfinished entry is taken for a dead process's


@dataclass(frozen=True)
class PreparedText:
    """A text prepared for training.

    Attributes:
        train: The tokens to train on.
        valid: The held-out tokens.
        tokenizer: Their vocabulary, made from the training part alone.
        fingerprint: SHA-256, in hexadecimal, of the text's content and all settings; with it
            :func:`load_prepared` finds the text again.
        name: What the text is, for display.
    """

    train: Tokens
    valid: Tokens
    tokenizer: Tokenizer
    fingerprint: str
    name: str


def write_meta(
    place: Path, fingerprint: str, name: str, tokenizer: Tokenizer, parts: dict[str, TokenWriter]
) -> None:
    """Write the tokenizer, and a description of the entry with the digests of its files."""
    (place / "tokenizer.json").write_bytes(tokenizer.to_json().encode("utf-8"))
    meta = {
        "fingerprint": fingerprint,
        "name": name,
        "dtype": parts["train"].dtype.str,
        "sha256": {path.name: _sha256_of(path) for path in sorted(place.iterdir())},
        "parts": {
            part: {
                "tokens": writer.tokens,
                "sequences": writer.sequences,
                "characters": writer.characters,
                "words": writer.words,
                "unknown": writer.unknown,
                "first_characters": writer.first_characters,
                "first_words": writer.first_words,
            }
            for part, writer in parts.items()
        },
    }
    text = json.dumps(meta, indent=1)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    (place / "meta.json").write_text(f"{digest}\n{text}", encoding="utf-8")


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish(place: Path, entry: Path) -> PreparedText:
    """Rename a finished entry into place; an entry that another process put there is as good."""
    for _ in range(10):
        try:
            place.rename(entry)
        except OSError:
            found = _load(entry)
            if found is not None:
                return found
            if not entry.exists():
                raise
            _set_aside(entry)  # damaged
            continue
        found = _load(entry)
        if found is not None:
            return found
    raise OSError(f"cannot keep a prepared text in {entry}: other processes keep changing it")


def _set_aside(entry: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=".building-", dir=entry.parent))
    try:
        entry.rename(aside / "damaged")
    except FileNotFoundError:
        pass  # another process was faster
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_stale(entries: Path) -> None:
    """Remove the unfinished entries of processes that died."""
    for path in entries.glob(".building-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its process has just finished


def find(entry: Path) -> PreparedText | None:
    """Load an entry of the cache, or None if it does not exist; warn if it is damaged."""
    try:
        return _checked(entry)
    except _DAMAGE as error:
        if not entry.exists():
            return None
        reason = " ".join(str(error).split())
    warnings.warn(
        f"the prepared text in {entry} is damaged ({reason}); the text is prepared again",
        BpttWarning,
        stacklevel=3,
    )
    return None


def _load(entry: Path) -> PreparedText | None:
    """Load an entry of the cache, or None if it does not exist or is incomplete."""
    try:
        return _checked(entry)
    except _DAMAGE:
        return None


def _checked(entry: Path) -> PreparedText:
    digest, text = (entry / "meta.json").read_bytes().split(b"\n", 1)
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("meta.json has another content than was written")
    meta = json.loads(text)
    if meta["fingerprint"] != entry.name:
        raise ValueError("it belongs to another text")
    for name, expected in meta["sha256"].items():
        if _sha256_of(entry / name) != expected:
            raise ValueError(f"{name} has another content than was written")
    tokenizer = Tokenizer.load(entry / "tokenizer.json")
    train, valid = (_load_part(entry, part, meta, tokenizer.size) for part in _PARTS)
    return PreparedText(train, valid, tokenizer, entry.name, str(meta["name"]))


def _load_part(entry: Path, part: str, meta: dict[str, Any], size: int) -> Tokens:
    counts = meta["parts"][part]
    ids = np.memmap(entry / f"{part}.ids", np.dtype(meta["dtype"]), "r")
    offsets = None
    if counts["sequences"]:
        offsets = np.memmap(entry / f"{part}.offsets", "<i8", "r")
    if len(ids) != counts["tokens"] or _largest(ids) >= size:
        raise ValueError(f"{part}.ids has ids outside the vocabulary")
    return Tokens(
        ids=ids,
        offsets=offsets,
        characters=counts["characters"],
        words=counts["words"],
        unknown=counts["unknown"],
        first_characters=counts["first_characters"],
        first_words=counts["first_words"],
    )


def _largest(ids: NDArray[Any]) -> int:
    """The largest id, computed without a copy of all ids."""
    starts = range(0, len(ids), 1 << 22)
    return max(int(ids[start : start + (1 << 22)].max()) for start in starts)
