"""From the bytes of a file to text: encodings, undecodable bytes, newlines."""

from __future__ import annotations

import codecs
import io
import threading
import warnings
from collections.abc import Iterator

from bptt.errors import BpttWarning, CorpusError, spelled

BLOCK = 1 << 16
"""Bytes read at a time."""

_MARKS = (  # utf-32 before utf-16: the little-endian mark of the one begins with the other's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PLAIN_CONTROLS = frozenset(map(chr, (8, 9, 10, 11, 12, 13, 27)))
_HANDLER = "bptt.replace-and-count"


class _BadBytes(threading.local):
    """Records of the error handler; one per thread, because handlers are global by name."""

    count = 0
    first: int | None = None
    fed = 0  # bytes passed to the decoder so far, to compute positions in the file


_bad = _BadBytes()


def _replace_and_count(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    _bad.count += 1
    if _bad.first is None:
        _bad.first = _bad.fed - len(error.object) + error.start
    return "\ufffd", error.end


codecs.register_error(_HANDLER, _replace_and_count)


def check_encoding(encoding: str | None) -> None:
    """Refuse an encoding that Python does not know, or that is not a text encoding.

    Args:
        encoding: A name such as ``"latin-1"``, or None.

    Raises:
        CorpusError: If there is no text encoding of that name.
    """
    if encoding is None:
        return
    try:
        b" ".decode(encoding)
    except UnicodeError:
        pass  # known; a single space is just not a whole character in it
    except (LookupError, ValueError):
        raise CorpusError(
            f"unknown encoding {encoding!r}: give one that Python knows, "
            "such as utf-8, latin-1, cp1252, utf-16 or shift_jis"
        ) from None


def decoded(
    file: io.BufferedIOBase, name: str, encoding: str | None, *, warn: bool
) -> Iterator[str]:
    """Read a binary file as text, block by block, with all newlines as ``\\n``.

    Args:
        file: An open binary file at its beginning.
        name: What to call it in messages.
        encoding: Its encoding; None takes that of its byte order mark, or UTF-8.
        warn: Whether to warn at the end of undecodable bytes, which become U+FFFD.

    Yields:
        Non-empty blocks of text, without lone surrogates.

    Raises:
        CorpusError: If the file is not text in that encoding.
    """
    block = file.read(BLOCK)
    offset = 0  # position in the file of the end of the decoded part
    marked, mark = _from_mark(block)
    if encoding is None:
        encoding = marked or "utf-8"
        block, offset = block[mark:], mark
    elif marked is not None and not _is_unicode(encoding):
        raise CorpusError(
            f"{name} begins with the byte order mark of {marked}, but its encoding was given as "
            f"{encoding}: leave {spelled('encoding')} out"
        )
    decoder = codecs.getincrementaldecoder(encoding)(_HANDLER)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    bad, first_bad, beginning = 0, None, True
    marks = 0
    while True:
        final = not block
        offset += len(block)
        _bad.count, _bad.first, _bad.fed = 0, None, offset
        try:
            text = decoder.decode(block, final)
        except (
            UnicodeError
        ) as error:  # some codecs, such as utf-16 without its mark, use no handler
            raise CorpusError(
                f"{name} is not {encoding} text ({error}): give its {spelled('encoding')}"
            ) from None
        bad += _bad.count
        first_bad = _bad.first if first_bad is None else first_bad
        if beginning and text:
            text = text.removeprefix("\ufeff")
            _check_text(text, name, encoding, bad)
            beginning = False
        if "\0" in text:
            raise CorpusError(
                f"{name} has a NUL byte after its first {BLOCK:,} bytes, so it is not all text: "
                f"remove the part that is not text, or give its {spelled('encoding')}"
            )
        marks += text.count("\ufeff")
        text = text.replace("\ufeff", "")
        if text := well_formed(newlines.decode(text, final)):
            yield text
        if final:
            break
        block = file.read(BLOCK)
    if bad and beginning:
        _check_text("", name, encoding, bad)
    if marks and warn:
        warnings.warn(
            f"{name}: {marks:,} byte order mark{'s' * (marks > 1)} within the text removed; "
            "perhaps files had been joined",
            BpttWarning,
            stacklevel=2,
        )
    if bad and warn:
        warnings.warn(
            f"{name}: {bad:,} undecodable byte sequence{'s' * (bad > 1)} became U+FFFD, the first "
            f"at byte {first_bad:,}; if the file is not {encoding}, give its {spelled('encoding')}",
            BpttWarning,
            stacklevel=2,
        )


def well_formed(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD, so that text can be encoded.

    Args:
        text: Any text; it is almost always returned unchanged.

    Returns:
        Text that every UTF encoding can hold.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def as_read(text: str) -> str:
    """Normalise a text as if it were read from a file: ``\\n`` newlines, no byte order marks.

    Args:
        text: Any text, for example typed or given from Python.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    return well_formed(text)


def _from_mark(block: bytes) -> tuple[str | None, int]:
    for mark, encoding in _MARKS:
        if block.startswith(mark):
            return encoding, len(mark)
    return None, 0


def _is_unicode(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf", "gb18030"))


def _check_text(text: str, name: str, encoding: str, bad: int) -> None:
    """Refuse a file that cannot be text in this encoding, judged by its first block."""
    controls = sum(text.count(chr(c)) for c in range(32) if chr(c) not in _PLAIN_CONTROLS)
    if "\0" in text:
        found = "NUL bytes"
    elif bad * 100 > len(text):
        found = f"{bad:,} undecodable bytes among its first {len(text):,} characters"
    elif controls * 10 > len(text):
        found = f"{controls:,} control characters among its first {len(text):,}"
    else:
        return
    raise CorpusError(
        f"{name} is not {encoding} text, it has {found}: give its {spelled('encoding')} if it is "
        "text (latin-1, utf-16, ...), or convert it to plain text if it is a binary file"
    )
