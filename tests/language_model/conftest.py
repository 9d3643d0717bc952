"""A small text, and a cache of its own for each test."""

from __future__ import annotations

import random

import pytest

from bptt.language_model import Config, train


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path_factory.mktemp("cache")))


def story(sentences: int = 300, seed: int = 0) -> str:
    """Sentences with some order in them, two a line, so that there is something to learn."""
    draw = random.Random(seed)
    people, acts = ["John", "Jane", "Mary", "the dog"], ["sees", "greets", "follows", "hears"]
    lines = []
    for _ in range(sentences):
        a, b = draw.sample(people, 2)
        lines.append(f"{a[0].upper()}{a[1:]} {draw.choice(acts)} {b} again.")
    return "".join(f"{a} {b}\n" for a, b in zip(lines[::2], lines[1::2], strict=True))


@pytest.fixture(name="story")
def _story():
    return story


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(story())
    return path


@pytest.fixture
def small(book):
    """Options for a training of a second or less."""
    return Config(
        corpus=(str(book),), hidden=16, steps=10, batch_size=4, epochs=2, save_every=1e9, threads=1
    )


@pytest.fixture
def run(small, tmp_path):
    """A run that has been trained."""
    return train(small, tmp_path / "run")
