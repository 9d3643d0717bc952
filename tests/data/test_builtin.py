from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bptt._src.data import builtin
from bptt.data import open_corpus
from bptt.errors import CorpusError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library in place of the large one."""
    root = tmp_path / "lib"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(root))
    files = {
        "zoo.py": '"""Last of all the modules."""\n',
        "box.py": (
            '"""A module of boxes, first.\n\n    Heading\n    =======\n    Text.\n    """\n'
            "class Box:\n    '''Second: a box that opens.'''\n"
            "    def open(self):\n        '''Third: opens it at once.'''\n"
            "try:\n    def f():\n        '''Fourth: inside of a try.'''\n"
            "except E:\n    def f():\n        '''Second: a box that opens.'''\n"
            "async def g():\n    '''Too short.'''\n"
        ),
        "broken.py": "def (:\n",
        "nul.py": "\0",
        "test/test_box.py": '"""Not this one at all."""\n',
        "site-packages/x.py": '"""Nor this one at all."""\n',
    }
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


def test_docstrings_come_in_the_order_of_the_source_each_once(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # cannot be imported
    assert "".join(open_corpus().pieces()) == (
        "A module of boxes, first.\n\nHeading\nText.\n\nSecond: a box that opens.\n\n"
        "Third: opens it at once.\n\nFourth: inside of a try.\n\nLast of all the modules.\n"
    )


def test_the_real_one_is_large_named_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus()
    text = "".join(corpus.pieces())
    assert corpus.name.startswith("the documentation of Python 3.")
    assert corpus.sources == ()
    assert len(text.split()) > 100_000
    assert 'The "assert" statement' in text
    assert "\r" not in text
    assert len(list(cache.glob("documentation-*.txt"))) == 1
    monkeypatch.setattr(builtin, "_passages", lambda: pytest.fail("made again"))
    assert "".join(open_corpus().pieces()) == text


def test_python_without_documentation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nothing"))
    with pytest.raises(CorpusError, match=r"no documentation .* give a text file"):
        open_corpus()
