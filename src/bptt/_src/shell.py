"""Quoting of arguments in commands that a message suggests."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def quoted(argument: str | Path) -> str:
    """Quote an argument for a POSIX shell.

    A path that begins with a dash is preceded by ``./``, so that it is not taken for an option.
    Characters that cannot be typed (control characters, bytes that are not UTF-8) are written as in
    ``$'caf\\\\xe9'``, which bash, zsh and ksh understand.

    >>> print(quoted("runs/book"), quoted("runs/my book"), quoted(Path("-x")))
    runs/book 'runs/my book' ./-x
    >>> print(quoted("caf\\udce9"), quoted("a\\x1b'b"))
    $'caf\\xe9' $'a\\x1b\\'b'
    """
    text = str(argument)
    if isinstance(argument, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    try:
        data = os.fsencode(character)
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name has
        data = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)
