"""JSON in a run: what is read is what was written, or it is refused.

A document ends with its own digest. A line of measurements has its number, and a checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bptt.files import read_whole

SEAL = "sha256"
"""The name of a document's digest."""

MOST = 64 << 20
"""The bytes that a document may have."""

_DEEPEST = 50  # objects and lists within each other


def parse(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is not JSON, names something twice, or is nested too deeply.

    >>> parse('{"a": 1, "a": 2}')
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
    """Write a document, an entry a line, with its digest at the end."""
    text = json.dumps({**document, SEAL: _digest(document)}, indent=2, ensure_ascii=False)
    # Parts of file names that are not UTF-8 cannot be written but by their numbers.
    return re.sub("[\ud800-\udfff]", lambda s: f"\\u{ord(s[0]):04x}", text) + "\n"


def unseal(document: dict[str, Any]) -> dict[str, Any]:
    """Take a document's digest away, if it is the right one.

    Raises:
        ValueError: there is none, or it is of another document.
    """
    rest = {k: v for k, v in document.items() if k != SEAL}
    if SEAL not in document:
        raise ValueError(f"it has no {SEAL}, which every file of a run has")
    if document[SEAL] != _digest(rest):
        raise ValueError(f"its {SEAL} is that of another content")
    return rest


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`sealed` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    document = parse(read_whole(path, MOST))
    if not isinstance(document, dict):
        raise ValueError("it holds no object")
    return unseal(document)


def line_of(number: int, measured: dict[str, Any]) -> str:
    """Write a line of measurements, with its number and a checksum.

    >>> line_of(0, {"loss": 2.5})
    '{"line": 0, "loss": 2.5, "crc32": "24d4524b"}'
    """
    body = json.dumps({"line": number, **measured})[:-1]
    return f'{body}, "crc32": "{zlib.crc32(body.encode()):08x}"}}'


def lines_in(data: bytes) -> dict[int, dict[str, Any]]:
    """Read the measurements in what :func:`line_of` wrote, by their numbers.

    A line that is damaged is left out, and so is one whose number was there before.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in _BETWEEN.split(data):
        whole = _LINE.fullmatch(line)
        if whole is None or zlib.crc32(whole[1]) != int(whole[2], 16):
            continue
        try:
            measured = parse(line)
        except ValueError:
            continue
        del measured["crc32"]
        number = measured.pop("line", None)
        if type(number) is int and number >= 0:
            found.setdefault(number, measured)
    return found


# A line's end; or whatever is in its place, between two whole lines.
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
