"""The built-in corpus: the documentation inside this Python installation, without a download."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from bptt._src.atomic import write_whole
from bptt._src.data.cache import cache_directory, cache_place
from bptt.errors import CorpusError

FORMAT = 1
"""Version of the corpus's content; part of the cached file's name."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
_LEFT_OUT |= {"__pycache__", "encodings", "ensurepip", "turtledemo", "__phello__"}
_RULER = re.compile(r"\s*([-=~*^\"'`#+])\1{2,}\s*\Z")
_SHORTEST = 4  # words; "Return the value." occurs a hundred times and teaches nothing


def text_file() -> Path:
    """The file that holds the built-in corpus, made at the first call and then kept.

    Returns:
        A UTF-8 file in the cache directory: the language reference's topics, then the
        docstrings of the standard library in the order of its files, blank lines between.

    Raises:
        CorpusError: If this Python has neither topics nor the library's source.
        ConfigError: If the file does not exist and the cache directory cannot be written.
    """
    version = f"{platform.python_implementation()}-{platform.python_version()}".lower()
    name = f"documentation-{version}-{FORMAT}.txt"
    path = cache_place() / name
    if not path.is_file() or path.stat().st_size == 0:
        path = cache_directory() / name
        write_whole(path, "\n\n".join(_passages()) + "\n")
    return path


def _passages() -> list[str]:
    passages = dict.fromkeys(_topics())
    passages.update(dict.fromkeys(_docstrings(Path(sysconfig.get_path("stdlib")))))
    if not passages:
        raise CorpusError(
            f"this Python ({sys.executable}) has no documentation to train on: give a text file"
        )
    return list(passages)


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for _, text in sorted(topics.items()):
        yield _clean(text)


def _docstrings(library: Path) -> Iterator[str]:
    """Docstrings of at least a few words, file by file, in the order of the source."""
    for path in _source_files(library):
        for text in _docstrings_of(path):
            cleaned = _clean(text)
            if len(cleaned.split()) >= _SHORTEST:
                yield cleaned


def _source_files(library: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(library).parts)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's source
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text
        inside = (ast.stmt, ast.ExceptHandler, ast.match_case)  # expressions hold no docstring
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, inside)]
        waiting.extend(reversed(children))  # popped in source order


def _clean(text: str) -> str:
    """Clean a docstring: remove its indentation and the rulers under its headings."""
    lines = inspect.cleandoc(text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    text = "\n".join(line.rstrip() for line in lines if not _RULER.match(line)).strip("\n")
    return text.encode("utf-8", "replace").decode("utf-8")
