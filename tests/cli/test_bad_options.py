"""Every option of every command with values that no one should give: one line, or taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import forked, offered
from cli.offered import LEAVE_OUT, Offered

from bptt._src.controls import on_one_line

LONG = "x" * 5000
HUGE = str(10**30)
NUMBERS = (
    *("", " ", "-1", "0", "-0", "1e400", HUGE, f"-{HUGE}", "nan", "inf", "-inf", "abc", "٣", "1e"),
    *("0x10", "+2", "2.5", "1_0", "\x1b[31m5", "9" * 5000, b"\xff", "--", "-", "1\n"),
)
TEXTS = (
    *("", " ", "\x1b]0;title\x07", "\u202eabc", "a\nb", LONG, b"caf\xe9", "-x", "~nouser/x", "\t"),
    *("[bold]x[/bold]", "٣", "None", "\x85", "a:b:c", "a.b:1", "%s {0} {x}", "\u2066x", ",", "="),
)
PLACES = (
    *("", " ", "folder", "missing", "missing/x", "book.txt", "book.txt/x", "fifo", "/dev/null"),
    *("/dev/full", "~nouser/x", "-x", b"caf\xe9", "x" * 300, LONG, "a\nb", "\x1b[2J", "[bold]x"),
    *("run", ".", "loop", "empty.json", "deep.json", "list.json", "closed", "-"),
    *("\u202etxt.png", "gone.png", "a.PNG", "folder/a.svg"),
)
TAKES_VALUE = (int, float, str, Path)


def values(option: Offered) -> Iterator[Any]:
    if option.kind in (int, float):
        yield from NUMBERS
    elif option.kind is Path or option.name in ("corpus", "valid", "task"):
        yield from PLACES
    elif option.kind is str:
        yield from TEXTS


def cases() -> list[tuple[Offered, list[Any]]]:
    """Arguments, each with the option that is to blame."""
    found = []
    for option in offered.everything():
        flag = option.flag
        base = _needed(option)
        found += [
            (option, offered.arguments(option.command, {**base, flag: value}))
            for value in values(option)
        ]
        if flag in (offered.TEXT, offered.RUN):
            continue
        whole = offered.arguments(option.command, {**base, flag: LEAVE_OUT})
        at = whole.index("--") if "--" in whole else len(whole)
        forms = [[s, s] for s in option.spellings] + [[f"{flag}="], [f"{flag}=x"], [flag[:-1]]]
        if option.kind in TAKES_VALUE:
            good = BASICS.get(option.kind, "1")
            forms += [[flag], [flag, good, flag, good], [f"{flag}={good}", flag, good]]
        elif option.parameter.secondary_opts:
            forms += [option.spellings]
        found += [(option, [*whole[:at], *form, *whole[at:]]) for form in forms]
    return found


FOLLOWS = (
    "standard input",  # what - is called
    "training diverged",  # the option was taken, and this came of it
    "a text has no option --lag",  # what is given beside a task that is a text
    "old.txt",  # a file of the folder that was given
)
BASICS = {int: "3", float: "0.5", str: "x", Path: "new.svg"}


def _needed(option: Offered) -> dict[str, Any]:
    """What must be given besides, so that the option is looked at."""
    if option.command == "compare" and option.parameter.rich_help_panel == "Texts":
        return offered.OF_TEXT
    if option.command == "flow" and option.name in ("hidden", "layers", "seed"):
        return {offered.RUN: LEAVE_OUT, "--cell": "gru"}
    if option.name in ("column", "encoding"):
        where = "--file" if option.command == "flow" else offered.TEXT
        return {where: "table.csv" if option.name == "column" else "old.txt"}
    return {}


@pytest.fixture(scope="module")
def world(world):
    """A directory that each case gets a copy of."""
    os.mkfifo(world / "fifo")
    (world / "loop").symlink_to("loop")
    (world / "empty.json").write_text("{}")
    (world / "list.json").write_text("[1, 2]")
    (world / "deep.json").write_text("[" * 100_000)
    (world / "closed").write_text("no one may read this")
    (world / "closed").chmod(0)
    import bptt._src.report.flow  # noqa: F401  # what a case would import is imported once

    offered.loaded()
    return world


@pytest.fixture
def place(world, tmp_path):
    """The copy."""
    where = tmp_path / "here"
    shutil.copytree(world, where, symlinks=True, ignore=lambda _, names: {"fifo"} & {*names})
    os.mkfifo(where / "fifo")
    return where


def little() -> None:
    """Let everything end after a little of it; in a process that ends after it."""
    import bptt._src.cli.export as export
    from bptt._src.language_model.training import Training
    from bptt.language_model import LanguageModel

    LanguageModel.to_onnx = lambda model: b"a file of ONNX"
    export.check_onnx = lambda *_, **__: 0.0

    fit = Training.fit

    def some(self, stop=lambda: None):
        return fit(self, lambda: "updates" if self.progress.updates >= 2 else stop())

    Training.fit = some
    offered.make_bench_small()


def names(where: Path) -> set[str]:
    return {str(p.relative_to(where)) for p in where.rglob("*")}


def weights(where: Path) -> bytes:
    return (where / "run" / "model.safetensors").read_bytes()


def check(option: Offered, given: list[Any], place: Path) -> None:
    """Run a case and look at what came of it."""
    os.environ["BPTT_CACHE"] = str(place / "cache")
    before, model = names(place), weights(place)
    ended = forked.command(*given, where=place, seconds=4, setup=little)
    about = f"bptt {' '.join(map(str, given))[:300]}: "
    assert ended.fault is None, about + ended.fault
    gone = {n for n in before - names(place) if not n.startswith("cache")}
    assert not gone, f"{about} {gone} gone"
    assert weights(place) == model, about
    if ended.status and not ended.interrupted:
        assert blames(option, given, ended.err), about + ended.err


def blames(option: Offered, given: list[Any], said: str) -> bool:
    """Whether a message names the option, or what was given for it."""
    shown = [
        on_one_line(os.fsdecode(v) if isinstance(v, bytes) else str(v))[:99] for v in given[1:]
    ]
    flags = [*option.spellings, option.flag, option.name, option.name.replace("_", " ")]
    named = any(s and s in said for s in [*flags, *(s for s in shown if len(s) > 4)])
    return named or any(f" {s}" in said for s in shown) or any(s in said for s in FOLLOWS)


def _through(chosen: list[tuple[Offered, list[Any]]], place: Path, world: Path) -> None:
    faults = []
    for option, given in chosen:
        try:
            check(option, given, place)
        except AssertionError as e:
            faults.append(str(e).split("\nassert")[0])
        for path in place.iterdir():  # what it made is not there for the next one
            if not (world / path.name).exists() and path.name not in ("fifo", "loop"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("book.txt", "run", "table.csv", "empty.json"):
            if (world / name).is_file():
                shutil.copy(world / name, place / name)
    assert not faults, f"{len(faults)} of {len(chosen)}:\n" + "\n".join(faults)


def test_some_bad_values(place, world):
    _through(cases()[7::67], place, world)


@pytest.mark.long
@pytest.mark.parametrize("command", offered.BASE)
def test_every_option_with_bad_values(place, world, survived, command):
    chosen = [case for case in cases() if case[0].command == command]
    _through(chosen, place, world)
    survived("bad options", len(chosen))
