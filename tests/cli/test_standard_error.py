"""What moves on a terminal leaves standard error where it goes, and above itself where it moves."""

from __future__ import annotations

import ast
import os
import pty
from pathlib import Path

import pytest
from cli.pseudo_terminal import Screen, Terminal

import bptt

SCRIPT = """
import sys
from bptt._src.cli import doctor
from bptt._src.cli.bench import BenchDisplay
from bptt._src.cli.compare import CompareDisplay
from bptt._src.cli.live import LiveDisplay
from bptt._src.cli.terminal import Console, complain

SHOWN = {
    "bench": BenchDisplay().progress(),
    "compare": CompareDisplay(False).progress(),
    "compare -q": CompareDisplay(True).progress(),
    "doctor": doctor.waiting(Console()),
    "preparing": LiveDisplay().preparing(),
    "waiting": LiveDisplay().waiting("working"),
}
for name, shown in SHOWN.items():
    with shown:
        complain(f"error: of {name}")
        print(f"a line of {name}")
    assert "rich" not in type(sys.stderr).__module__
"""
NAMES = ("bench", "compare", "compare -q", "doctor", "preparing", "waiting")
ERRORS = [f"error: of {name}" for name in NAMES]
LINES = [f"a line of {name}" for name in NAMES]


@pytest.fixture
def terminal():
    started = []

    def start(**how):
        how["environment"] = {"OMP_NUM_THREADS": "1"}
        started.append(Terminal(SCRIPT, program=("-c",), **how))
        return started[-1]

    yield start
    for t in started:
        t.close()


def test_a_file_gets_all_of_it_and_the_terminal_none(terminal, tmp_path):
    with (tmp_path / "err").open("wb") as file:
        t = terminal(stderr=file)
        assert t.end() == 0, t.text
    assert (tmp_path / "err").read_text().splitlines() == ERRORS
    assert "error" not in t.text
    assert [line for line in Screen(80).feed(t.text).shown if line] == LINES
    assert "\x1b[?25l" in t.text  # something moved


def test_another_terminal_gets_all_of_it(terminal):
    ours, theirs = pty.openpty()
    try:
        t = terminal(stderr=theirs)
        assert t.end() == 0, t.text
        os.close(theirs)
        assert os.read(ours, 65536).decode().splitlines() == ERRORS
    finally:
        os.close(ours)
    assert "error" not in t.text


def test_on_the_same_terminal_it_stays_and_what_moved_is_gone(terminal):
    t = terminal()
    assert t.end() == 0, t.text
    shown = [line for line in Screen(80).feed(t.text).shown if line]
    assert shown == [line for pair in zip(ERRORS, LINES, strict=True) for line in pair]


def test_no_display_forgets_it():
    found = {}
    for path in Path(bptt.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)) if "rich" in text else ():
            if not isinstance(call, ast.Call):
                continue
            name = (
                call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
            )
            if name in ("Live", "Progress", "Status", "status", "track"):
                given = {k.arg: ast.unparse(k.value) for k in call.keywords}
                found[f"{path.name}: {name}"] = given.get("redirect_stderr")
    assert {*found.values()} == {"shares_terminal()"}, found
    assert len(found) == 4
