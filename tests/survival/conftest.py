"""A server of processes that may die, and a small text."""

from __future__ import annotations

import random

import pytest
from dying import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    draw = random.Random(0)
    people, acts = ["John", "Jane", "Mary", "Ann"], ["sees", "greets", "hears"]
    lines = []
    for _ in range(60):
        a, b = draw.sample(people, 2)
        lines.append(f"{a} {draw.choice(acts)} {b} again.\n")
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def small(book):
    """Options for a training of some hundredths of a second that saves after each update."""
    return {
        "corpus": [str(book)],
        "hidden": 4,
        "steps": 10,
        "batch_size": 4,
        "epochs": 2,
        "save_every": 0,
        "threads": 1,
        "flow_every": 5,
    }
