from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bptt.data import Corpus, open_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    path = tmp_path / "cache"
    monkeypatch.setenv("BPTT_CACHE", str(path))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Makes a corpus of a text, through a file."""

    def make(text: str, name: str = "text.txt") -> Corpus:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8"))
        return open_corpus([path])

    return make


@pytest.fixture
def story() -> str:
    """A text with lines, paragraphs, quotes, and enough of it to be split."""
    lines = []
    for i in range(300):
        lines.append(f"The traveller number {i % 7} went on, half-way to o'clock {i}.")
        lines.append('"Soft! who comes here?" said the other; "it is not\nsir John."')
        if i % 3 == 0:
            lines.append("")
    return "\n".join(lines) + "\n"
