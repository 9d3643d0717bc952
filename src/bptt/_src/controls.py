"""Control characters in texts, shown as Python escapes them."""

from __future__ import annotations

import re

# C0 but for line ends and tabs, DEL, C1; line and paragraph separators; what sets or overrides
# the direction of text; bytes of file names that are not UTF-8.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_CONTROLS}]")
_IN_LINE = re.compile(f"[{_CONTROLS}\t\n]")


def visible(text: str) -> str:
    r"""Show control characters as Python escapes them; line ends and tabs stay.

    >>> print(visible("a\x1b[2Jb"), visible("caf\udce9"), visible("\u202etxt.exe"))
    a\x1b[2Jb caf\xe9 \u202etxt.exe
    """
    return _IN_TEXT.sub(_escape, text)


def on_one_line(text: str) -> str:
    r"""Show line ends and tabs as well.

    >>> print(on_one_line("two\nlines"))
    two\nlines
    """
    return _IN_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode("ascii")
