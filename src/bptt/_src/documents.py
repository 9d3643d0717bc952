"""JSON in a run: it is read back exactly as written, or refused.

A document ends with its own digest. A line of measurements has a number and a checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bptt._src.atomic import read_whole

SEAL = "sha256"
"""The key of a document's digest."""

MOST = 64 << 20
"""The largest size of a document, in bytes."""

_DEEPEST = 50  # levels of nested objects and lists


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, repeats a key, or is nested too deeply.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: 'a' is there twice
    """
    try:
        found = json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [found]
    for _ in range(_DEEPEST):
        level = [v for x in level for v in _within(x)]
        if not level:
            return found
    raise ValueError("it is nested too deeply")


def sealed(document: dict[str, Any]) -> str:
    """Write a document, one entry per line, with its digest at the end."""
    text = json.dumps({**document, SEAL: _digest(document)}, indent=2, ensure_ascii=False)
    # Parts of file names that are not UTF-8 can only be written as escapes.
    return re.sub("[\ud800-\udfff]", lambda s: f"\\u{ord(s[0]):04x}", text) + "\n"


def unseal(document: dict[str, Any]) -> dict[str, Any]:
    """Remove a document's digest after checking it.

    Raises:
        ValueError: there is none, or it does not match.
    """
    rest = {k: v for k, v in document.items() if k != SEAL}
    if SEAL not in document:
        raise ValueError(f"it has no {SEAL}, which every file of a run has")
    if document[SEAL] != _digest(rest):
        raise ValueError(f"its content does not match its {SEAL}")
    return rest


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a document that :func:`sealed` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    document = parse_json(read_whole(path, MOST))
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    return unseal(document)


def line_of(number: int, measured: dict[str, Any]) -> str:
    """Write a line of measurements, with its number and a checksum.

    >>> line_of(0, {"loss": 2.5})
    '{"line": 0, "loss": 2.5, "crc32": "24d4524b"}'
    """
    body = json.dumps({"line": number, **measured})[:-1]
    return f'{body}, "crc32": "{zlib.crc32(body.encode()):08x}"}}'


def lines_in(data: bytes) -> dict[int, dict[str, Any]]:
    """Parse lines written by :func:`line_of`; return the measurements by number.

    Damaged lines are skipped, and so are lines whose number has occurred before.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in _BETWEEN.split(data):
        whole = _LINE.fullmatch(line)
        if whole is None or zlib.crc32(whole[1]) != int(whole[2], 16):
            continue
        try:
            measured = parse_json(line)
        except ValueError:
            continue
        del measured["crc32"]
        number = measured.pop("line", None)
        if type(number) is int and number >= 0:
            found.setdefault(number, measured)
    return found


# The end of a line, or whatever replaces it, between two intact lines.
_BETWEEN = re.compile(rb'\n|(?<="\})[^\n]?(?=\{"line": )')
_LINE = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}')


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found
