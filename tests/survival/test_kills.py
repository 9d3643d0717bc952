"""Killed before anything that is done to the file system, and at random moments."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from pathlib import Path

import pytest

from bptt._src.networks import NAMES

NOTES = "mine"
FILES = {
    *("config.json", "tokenizer.json", "text.json", "model.safetensors"),
    *("checkpoint.safetensors", "metrics.jsonl", ".lock"),
}


class Scenario:
    """A command that is killed, from the same state each time."""

    def __init__(self, name, server, small, where):
        self.name, self.server, self.small, self.where = name, server, small, where
        self.before = where / "before"  # what is there when the command begins
        self.before.mkdir(parents=True)
        if name == "a run in a directory of one's own":
            (self.before / "run").mkdir()
        if name == "resume":
            server("begin", out=str(self.before / "run"), config=small, updates=4)
        if name == "overwrite":
            server("make", out=str(self.before / "run"), config={**small, "hidden": 3})
        if (self.before / "run").exists():
            (self.before / "run" / "notes.txt").write_text(NOTES)
        server("make", out=str(where / "whole" / "run"), config=small)
        self.bits, _ = server("bits_of", out=str(where / "whole" / "run"))
        self.events = self.command(self.copy("count"), None)[0]

    def copy(self, name):
        place = self.where / name
        shutil.copytree(self.before, place)
        return str(place / "run")

    def command(self, out, at):
        if self.name == "resume":
            return self.server("go_on", out=out, at=at)
        return self.server("make", out=out, config=self.small, overwrite=True, at=at)

    def killed(self, at):
        """Be killed before an event; then do what one would do, and compare."""
        out = self.copy(str(at))
        _, died = self.command(out, at)
        assert died, f"{self.name}: there was no event {at}"
        hidden, _ = self.server("hidden_of", out=out)
        if self.name == "overwrite":
            assert hidden is not None, f"{self.name}, event {at}: no run is left"
        if hidden == self.small["hidden"]:
            self.server("go_on", out=out)
        else:
            self.server("make", out=out, config=self.small, overwrite=True)
        bits, _ = self.server("bits_of", out=out)
        assert bits == self.bits, f"{self.name}, event {at}: other bits"
        self.check_files(out, at)
        shutil.rmtree(self.where / str(at))

    def check_files(self, out, at):
        there = {p.name: p for p in (self.where / str(at) / "run").iterdir()}
        notes = there.pop("notes.txt", None)
        if (self.before / "run" / "notes.txt").exists():
            assert notes.read_text() == NOTES, f"{self.name}, event {at}: the user's file"
        assert there.keys() == FILES, f"{self.name}, event {at}: {there.keys()}"
        assert [p.name for p in (self.where / str(at)).iterdir()] == ["run"]


def test_children_import_next_to_nothing(server, small, tmp_path):
    """Otherwise each takes a second for it, and kills at random moments come before training."""
    imported, _ = server("imports_of", out=str(tmp_path / "run"), config=small)
    assert len(imported) < 20, imported[::20]
    tasks = Path(f"/proc/{server.process.pid}/task")
    assert not tasks.exists() or len([*tasks.iterdir()]) == 1, "a fork has one thread only"


SCENARIOS = ["a new run", "a run in a directory of one's own", "resume", "overwrite"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_some_events(name, server, small, tmp_path):
    scenario = Scenario(name, server, small, tmp_path)
    assert scenario.events > 50
    for at in range(random.Random(name).randrange(9), scenario.events, scenario.events // 3):
        scenario.killed(at)


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_every_event(name, server, small, tmp_path, survived):
    scenario = Scenario(name, server, small, tmp_path)
    # In a directory of one's own the events are those of a new run: every fourth one.
    events = range(0, scenario.events, 4 if name == SCENARIOS[1] else 1)
    for at in events:
        scenario.killed(at)
    survived(f"kills before an event of the file system: {name}", len(events))


CELLS = [
    {"cell": "lstm"},
    {"cell": "gru", "layers": 2, "dropout": 0.2},
    {"cell": "rnn", "nonlinearity": "relu", "tied": True},
    *(
        {"cell": name, "layers": 2, "dropout": 0.1}
        for name in NAMES
        if name not in ("lstm", "gru", "rnn")
    ),
]
READINGS = [
    {"reading": "stream"},
    {"reading": "stream", "sampling": "random"},
    {"reading": "sentences"},
    {"reading": "lines", "level": "char"},
]
OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adam"},
    {"optimizer": "adam", "embedding_rows": "used"},
    {"optimizer": "adamw", "weight_decay": 0.1},
]
CREDITS = ["full", "truncated:5", "truncated:every=4,reach=9", "randomized:5", "adaptive:0.3"]


def options(cell, reading, optimizer, credit):
    found = {**cell, **reading, **optimizer, "credit": credit}
    is_carried = reading == READINGS[0]
    if not is_carried or credit not in ("full", "truncated:5", "randomized:5"):
        found["steps"] = None  # a sequence is whole, or the credit says how long a window is
    return found


def killed_at_random(server, small, tmp_path, chosen, draw, most):
    """Train with kills, and without; return how many kills there were."""
    config = {**small, **chosen}
    began = time.monotonic()
    server("make", out=str(tmp_path / "whole"), config=config)
    took = time.monotonic() - began
    expected, _ = server("bits_of", out=str(tmp_path / "whole"))
    out, kills = str(tmp_path / "parts"), 0
    while True:
        after = draw.uniform(0.001, 0.7 * took) if kills < most else None
        hidden, _ = server("hidden_of", out=out)
        if hidden is None:
            _, died = server("make", out=out, config=config, overwrite=True, die_after=after)
        else:
            _, died = server("go_on", out=out, die_after=after)
        if not died:
            break
        kills += 1
    assert server("bits_of", out=out)[0] == expected, chosen
    shutil.rmtree(tmp_path / "whole")
    shutil.rmtree(out)
    return kills


def test_killed_at_random_moments(server, small, tmp_path):
    draw, kills = random.Random(1), 0
    for number in range(2):
        kinds = [k[number % len(k)] for k in (CELLS, READINGS, OPTIMIZERS, CREDITS)]
        kills += killed_at_random(server, small, tmp_path, options(*kinds), draw, 2)
    assert kills


def kinds_in_every_triple():
    """Every fourth of all combinations, so that each three options occur together.

    Those that the configuration refuses are left out: with a tied embedding every row is used.
    """
    every = itertools.product(*map(enumerate, (CELLS, READINGS, OPTIMIZERS, CREDITS)))
    for numbered in every:
        kinds = [kind for _, kind in numbered]
        is_refused = "tied" in kinds[0] and "embedding_rows" in kinds[2]
        if sum(number for number, _ in numbered) % 4 == 0 and not is_refused:
            yield kinds


@pytest.mark.long
@pytest.mark.parametrize("part", range(2))
def test_killed_at_random_moments_over_all_options(part, server, small, tmp_path, survived):
    draw, kills = random.Random(part), 0
    for chosen in itertools.islice(kinds_in_every_triple(), part, None, 2):
        kills += killed_at_random(server, small, tmp_path, options(*chosen), draw, 2)
    survived("kills at random moments of trainings with all options", kills)
