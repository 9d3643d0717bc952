"""Ctrl-C and SIGTERM at any moment of any command: one line, the status, and nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import forked, offered
from cli.offered import LEAVE_OUT, RUN
from cli.processes import python

from bptt.language_model import Run

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
LONGER = {
    "train": {"--epochs": 3, "--save-every": 0},
    "sample": {"--length": 300},
    "flow": {"--tokens": 40, "--html": "flow.html", "--figure": "flow.png"},
    "audit": {offered.TEXT: "loop.py:long", "--html": "audit.html", "--figure": "audit.png"},
    "evaluate": {"--json": "found.json"},
    "compare": {"--updates": 20, "--seeds": 2},
    "bench": {"--rounds": 30, "--figure": "bench.png"},
    "doctor": {"--json": "doctor.json"},
}
CASES = {
    **{name: (name, changes) for name, changes in LONGER.items()},
    "train over a run": ("train", {"--out": "run", "--overwrite": None}),
    "train, resumed": (
        "train",
        dict.fromkeys(offered.BASE["train"], LEAVE_OUT) | {"--resume": "run", "--epochs": 4},
    ),
    "flow, untrained": ("flow", {RUN: LEAVE_OUT, "--cell": ["lstm", "rnn"]}),
}


@pytest.fixture(scope="module")
def world(world):
    import bptt._src.report.flow  # noqa: F401

    offered.loaded()
    return world


def setup() -> None:
    offered.make_bench_small()


def interrupt(case: str, number: int, after: float, world, tmp_path, monkeypatch) -> bool:
    """Send a signal so late; return whether it came before the end."""
    command, changes = CASES[case]
    where = tmp_path / "here"
    shutil.copytree(world, where)
    monkeypatch.setenv("BPTT_CACHE", str(where / "cache"))
    if case == "train":  # the preparation of the text, too
        shutil.rmtree(where / "cache")
    old = (where / "run" / "config.json").stat().st_ino
    before = {p.relative_to(where) for p in where.rglob("*") if "cache" not in p.parts}
    given = offered.arguments(command, changes)
    ended = forked.command(*given, where=where, signal_after=(number, after), setup=setup)
    about = f"{case}, {after:.3f} s: {ended}"
    assert ended.fault is None, about
    assert ended.status in (0, SIGNALS[number]), about
    assert ended.interrupted or ended.status == 0, about
    if ended.status:
        said = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
        assert said in ([], ["Interrupted."], ["Terminated."]), about
    gone = before - {p.relative_to(where) for p in where.rglob("*")}
    if case == "train over a run" and (where / "run" / "config.json").stat().st_ino != old:
        gone -= {
            Path("run/model.safetensors"),
            Path("run/metrics.jsonl"),
        }  # the new one's come later
    assert not gone, f"{about}: {gone} gone"
    for name in ("run", "new"):
        if (where / name / "config.json").exists():
            assert Run(where / name).load_model() is not None
    if not (where / "new" / "config.json").exists() and case == "train":
        left = [p.name for p in where.glob(".new*")] + [p.name for p in where.glob("new")]
        assert not left, f"{about}: {left} is left"
    assert not list(where.glob(".*.new")), about
    shutil.rmtree(where)
    return ended.status != 0


def duration(case: str, world, tmp_path, monkeypatch) -> float:
    began = time.monotonic()
    assert not interrupt(case, signal.SIGINT, 60.0, world, tmp_path, monkeypatch)
    return time.monotonic() - began


@pytest.mark.parametrize("case", CASES)
def test_at_some_moments(case, world, tmp_path, monkeypatch):
    took = duration(case, world, tmp_path, monkeypatch)
    heard = [
        interrupt(case, number, share * took, world, tmp_path, monkeypatch)
        for number, share in zip(SIGNALS, (0.2, 0.5), strict=True)
    ]
    assert any(heard)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_at_many_moments(case, world, tmp_path, monkeypatch, survived):
    took, moments = duration(case, world, tmp_path, monkeypatch), 10
    for number in SIGNALS:
        for moment in range(moments):
            interrupt(case, number, took * moment / moments, world, tmp_path, monkeypatch)
    survived("Ctrl-C and SIGTERM at any moment of a command", 2 * moments)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("after", [0.05, 0.4, 1.0])
def test_while_the_command_is_being_imported(number, after, world):
    """In a process of its own, from its first line on."""
    code = (
        "import os, sys; sys.argv = ['bptt', 'train', 'book.txt', '--epochs', '100000'];"
        "from bptt._src.cli import main; os.write(1, b'!'); main()"
    )
    process = python("-c", code, cwd=world, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout.read(1) == "!"
    time.sleep(after)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == SIGNALS[number], err
    assert err.splitlines() in ([], ["Interrupted."], ["Terminated."])


def test_in_the_background_ctrl_c_is_ignored_as_the_shell_wants_it(world):
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    code += "from bptt._src.cli.interrupts import Interrupts\nwith Interrupts().handled(): "
    code += "signal.raise_signal(signal.SIGINT); print('went on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_an_interrupt_where_nothing_can_be_raised_is_not_lost():
    """Python drops an exception in a finalizer, Ctrl-C as well."""
    code = (
        "import signal, time\nfrom bptt._src.cli.interrupts import Interrupts\n"
        "class Finalized:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "interrupts = Interrupts()\nwith interrupts.handled():\n    interrupts.working()\n"
        "    try:\n        Finalized()\n        time.sleep(5)\n"
        "    except KeyboardInterrupt: print(interrupts.words)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("Interrupted.\n", "")
