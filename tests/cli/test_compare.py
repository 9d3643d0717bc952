"""``bptt compare`` as a user runs it; most of it in this process, where it starts faster."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from functools import partial

import pytest
from cli.processes import start
from matplotlib.figure import Figure

from bptt._src.cli.compare import _one_by_one
from bptt._src.networks import NAMES
from bptt.comparison import Comparison

SMALL = ["--seeds", "1", "--hidden", "4", "--updates", "3", "--batch-size", "2", "--lag", "5"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to work in, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def bptt(here, monkeypatch, in_process):
    """Run the command in this process; give what it printed."""
    # The figure takes longest; processes of their own draw it below.
    monkeypatch.setattr("bptt._src.comparison.figure.draw_comparison", lambda found: Figure())
    return partial(in_process, "compare")


@pytest.fixture
def fails(bptt):
    def run(*arguments, status=1):
        _, err = bptt(*arguments, status=status)
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("error: ")
        return err.strip()

    return run


def spellings(path):
    return [c["credit"] for c in json.loads((path / "comparison.json").read_text())["credits"]]


def test_the_table_and_the_files(bptt, here):
    out, err = bptt("--credit", "full", "truncated:3", "--seeds", 2, *SMALL[2:])
    assert not err
    assert out.startswith("run 1 of 4: full, seed 0: 3 updates, loss ")
    path = here / "runs" / "compare-copy-1"
    assert sorted(p.name for p in path.iterdir()) == ["comparison.json", "comparison.png"]
    found = Comparison.from_dict(json.loads((path / "comparison.json").read_text()))
    assert str(found) in out
    assert "Written: " in out
    assert (path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in out


def test_where_it_is_put(bptt, fails, here):
    small = [*SMALL, "--credit", "full"]
    for _ in range(2):
        bptt(*small, "-q")
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["compare-copy-1", "compare-copy-2"]
    assert bptt(*small, "--out", "a/b", "--quiet") == ("", "")
    before = (here / "a/b/comparison.json").read_text()
    assert "--overwrite" in fails(*small, "--out", "a/b")
    assert (here / "a/b/comparison.json").read_text() == before
    bptt(*small, "--target", 5, "--out", "a/b", "--overwrite", "-q")
    assert (here / "a/b/comparison.json").read_text() != before


def test_several_credits_after_one_option(bptt, here):
    both = ["full", "truncated:3"]
    bptt("--credit", *both, *SMALL, "-q", "--out", "one")
    bptt("--credit", both[0], *SMALL, "--credit", both[1], "-q", "--out", "two")
    bptt(*SMALL, f"--credit={both[0]}", both[1], "--out", "three", "-q")
    assert [spellings(here / name) for name in ("one", "two", "three")] == [both] * 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--credit a b --lag 3", "--credit a --credit b --lag 3"),
        ("--lag 3 --credit a b", "--lag 3 --credit a --credit b"),
        ("--credit=a b -q", "--credit=a --credit b -q"),
        ("--credit a --credit b c", "--credit a --credit b --credit c"),
        ("--credit a -q b", "--credit a -q b"),  # which is then an unexpected argument
        ("--credit", "--credit"),
        ("", ""),
    ],
)
def test_credits_one_by_one(given, meant):
    assert _one_by_one(given.split()) == meant.split()


def test_what_belongs_to_no_option_is_an_error(bptt):
    _, err = bptt("full", *SMALL, status=2)
    assert "full" in err


def test_by_default_there_are_four_credits(bptt, here):
    bptt(*SMALL, "-q", "--out", "run")
    assert spellings(here / "run") == ["full", "truncated:2", "randomized:5", "adaptive:0.5"]


CHANGES = {
    "--cell": "gru",
    "--hidden": 5,
    "--layers": 2,
    "--lr": 0.1,
    "--learning-rate": 0.2,
    "--updates": 4,
    "--seeds": 2,
    "--batch-size": 3,
    "--lag": 6,
    "--symbols": 2,
    "--alphabet": 3,
    "--masked": None,
    "--target": 9,
    "--memory": "recompute:1",
    "--max-minutes": 1e-6,
}


def what_is_measured(path):
    """All but times."""
    found = json.loads((path / "comparison.json").read_text())
    for c in found["credits"]:
        c.pop("figures")
        for t in c["trials"]:
            t.pop("seconds")
    return found


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_the_result(bptt, here, option):
    small = [*SMALL, "--credit", "full", "-q"]
    value = CHANGES[option]
    bptt(*small, "--out", "plain")
    if option in small:
        at = small.index(option)
        del small[at : at + 2]
    bptt(*small, option, *([] if value is None else [value]), "--out", "other")
    plain, other = (what_is_measured(here / name) for name in ("plain", "other"))
    plain_trials, other_trials = (f["credits"][0]["trials"] for f in (plain, other))
    if option == "--target":
        assert other["target"] == 9
    else:
        assert other_trials != plain_trials


def test_the_same_again_is_the_same(bptt, here):
    for name in ("one", "two"):
        bptt(*SMALL, "--credit", "randomized:3", "-q", "--out", name)
    assert what_is_measured(here / "one") == what_is_measured(here / "two")


def test_a_credit_of_one_s_own(bptt, here):
    (here / "mine.py").write_text(
        "import bptt\n"
        "class Nearly(bptt.Credit):\n"
        "    def __init__(self, factor):\n"
        "        self.factor = factor\n"
        "    def plan(self, steps, batch=1, generator=None):\n"
        "        return bptt.Plan(steps, carry=[self.factor] * steps)\n"
    )
    bptt("--credit", "mine.Nearly:0.5", "mine.Nearly:1.0", "full", *SMALL, "-q", "--out", "run")
    half, one, full = json.loads((here / "run/comparison.json").read_text())["credits"]
    assert half["credit"] == "mine.Nearly:0.5"
    assert one["exact"]
    assert not half["exact"]
    assert one["trials"][0]["losses"] == full["trials"][0]["losses"]
    assert half["trials"][0]["losses"] != full["trials"][0]["losses"]
    sys.modules.pop("mine")


def test_a_text(bptt, here):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    (here / "book.txt").write_text(" ".join(words[i * i % 10] for i in range(400)))
    out, err = bptt(
        "--task", "book.txt", "--credit", "full", "truncated:2", "--seeds", 1, "--hidden", 4,
        "--updates", 3, "--batch-size", 2, "--steps", 5, "--vocabulary", 20, "--level", "char",
    )  # fmt: skip
    assert not err
    assert "perplexity" in out
    assert "level char" in out
    assert (here / "runs/compare-book-1/comparison.png").exists()


BAD = {
    "a task there is not": (["--task", "nothing.txt"], "nothing.txt.*copy, copy-stream"),
    "a credit there is not": (["--credit", "fll"], "credit 'fll'"),
    "an argument that is no credit": (["--credit", "full", "x"], "credit 'x'"),
    "a credit twice": (["--credit", "full", "full"], "twice"),
    "another task's option": (["--task", "adding", "--lag", "3"], "adding has no option --lag"),
    "a task's option on a text": (["--task", "python", "--lag", "3"], "text has no option --lag"),
    "a text's option on a task": (["--level", "char"], "copy has no option --level"),
    "no seed": (["--seeds", "0"], "--seeds must be from 1 to 1000000, got 0"),
    "out of range": (["--lag", "2"], "lag must be more than symbols"),
    "cell": (
        ["--cell", "cnn"],
        f"--cell must be one of {', '.join(NAMES)}, or your own as module.CELL, got 'cnn'",
    ),
    "memory": (["--memory", "none"], "memory must be"),
    "out is a file": (["--out", "file"], "is a file"),
    "an empty text": (["--task", "file"], "file"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_a_status(fails, here, arguments, says):
    (here / "file").touch()
    line = fails(*arguments)
    assert re.search(says, line), line
    assert sorted(p.name for p in here.iterdir() if p.name != "cache") == ["file"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_leaves_what_is_finished(here, number, status):
    small = ["--credit", "full", "truncated:3", "--hidden", 4, "--lag", 5, "--target", 100]
    process = start("compare", *small, "--seeds", 1000, "--updates", 20, "--out", "run")
    first = process.stdout.readline()
    assert first.startswith("run    1 of 2000: full, seed 0")
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, (out, err)
    assert not err
    assert "Interrupted; the runs that were finished:" in out
    found = Comparison.from_dict(json.loads((here / "run/comparison.json").read_text()))
    assert found.interrupted
    assert 1 <= len(found.credits[0].trials) < 1000
    assert str(found) in out
    assert (here / "run/comparison.png").stat().st_size > 20_000


def test_a_signal_before_anything_is_finished(here):
    process = start("compare", "--credit", "full", "--updates", 10**9, "--target", 1e-9)
    for _ in range(300):
        if (here / "runs/compare-copy-1").exists():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "nothing is written" in out
    assert not (here / "runs").exists()


def test_help(bptt):
    out, _ = bptt("--help")
    assert "bptt compare --task book.txt" in out
    for option in ("--credit", "--lag", "--marks", "--max-minutes", "--level"):
        assert option in out
