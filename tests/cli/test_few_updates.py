"""Where a text makes few updates an epoch, training says so once, and which option to change."""

from __future__ import annotations

import json
import re

import pytest

SMALL = ["--level", "char", "--hidden", 4, "--threads", 1, "--valid-fraction", 0.5]
QUICK = ["--max-minutes", 0]  # an update


@pytest.fixture
def train(in_process, tmp_path, monkeypatch):
    """Train on 2,000 characters; give the lines on updates an epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("To be or not. A b c d.\n" * 174)

    def run(*arguments):
        out, err = in_process("train", *arguments)
        assert not err
        return [line for line in out.splitlines() if line.startswith("Updates")]

    return run


def test_it_is_said_once_and_the_batch_that_it_names_makes_as_many(train, tmp_path):
    (line,) = train("book.txt", *SMALL, "--epochs", 2, "--out", "run")
    assert line == (
        "Updates: only 3 an epoch, of 20 × 35 tokens each. For more, lower --batch-size "
        "(1 makes about 57), or lower --steps, or give more text."
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(m["update"] for m in lines) in (5, 6)  # the windows begin at random places
    assert "only" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_a_batch_that_makes_enough_is_named(train):
    (line,) = train("book.txt", *SMALL, *QUICK, "--steps", 3, "--out", "run")
    size, about = map(int, re.search(r"\((\d+) makes about (\d+)\)", line).groups())
    assert 100 <= about <= 150
    assert train("book.txt", *SMALL, *QUICK, "--steps", 3, "--batch-size", size) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sentences"], r"of up to 20 sequences each\. For more, lower --batch-size \(1 .*, or "),
        (["--batch-size", 1, "--lines"], r"each\. For more, give more text\.$"),
        (["--credit", "truncated:30"], r"of 20 × 30 tokens .* 66\), or give more text\.$"),
        (["--credit", "truncated:30", "--sampling", "random"], r"lower --steps"),
        (["--max-tokens", 900], r"lower --steps, or raise --max-tokens\.$"),
    ],
)
def test_it_names_what_can_be_changed(train, arguments, said):
    (line,) = train("book.txt", *SMALL, *QUICK, *arguments)
    assert re.search(said, line), line


def test_it_is_not_said_where_it_does_not_matter(train):
    assert train("book.txt", *SMALL, *QUICK, "--out", "few", "-q") == []
    assert train("--resume", "few", "--epochs", 11, *QUICK) == []
    assert train("book.txt", *SMALL, *QUICK, "--batch-size", 1, "--steps", 9) == []
    assert train("book.txt", *SMALL, *QUICK, "--epochs", 500) == []
    assert train("book.txt", *SMALL, "--epochs", 0) == []
