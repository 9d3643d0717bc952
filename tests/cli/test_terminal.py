"""What is printed: nothing that a terminal would obey, and whatever the standard streams are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bptt._src.cli.terminal import Console
from bptt._src.controls import on_one_line, visible
from bptt._src.shell import quoted

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[bold]x[/bold]\x7f\x00\x85\u2066\u2028"


def is_harmless(text: str) -> bool:
    return visible(text) == text


@pytest.mark.parametrize("code", [*range(0x120), *range(0x2000, 0x2070), 0xD800, 0xDC80, 0xDFFF])
def test_every_control_is_shown_and_nothing_else(code):
    import unicodedata

    character, kind = chr(code), unicodedata.category(chr(code))
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    turns = unicodedata.bidirectional(character) in directions or code in (0x200E, 0x200F)
    evil = kind in ("Cc", "Cs", "Zl", "Zp") or turns or 0x206A <= code <= 0x206F
    assert (visible(character) != character) is (evil and character not in "\n\t")
    assert (on_one_line(character) != character) is evil
    assert on_one_line(character).isprintable() or kind in ("Cf", "Zs", "Cn")
    assert is_harmless(visible(character))


def test_joiners_and_soft_hyphens_are_text():
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467 co\u00adoperate \u0646\u0645\u06cc\u200c"
    assert visible(family) == family


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_shows_texts_as_they_are(terminal, monkeypatch, capsys):
    from rich.progress import Progress, TextColumn
    from rich.table import Table

    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    assert console.is_terminal is terminal
    console.print(EVIL)
    table = Table()
    table.add_column(EVIL)
    table.add_row(EVIL)
    console.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(EVIL)
        bar.refresh()
    out = capsys.readouterr().out
    assert out.count("[bold]x[/bold]") >= 3  # in the bar it may be cut
    for evil in ("\x1b]0", "\x1b[2J", "\x9b", "\x07", "\x00", "\x85", "\u202e", "\u2066", "\u2028"):
        assert evil not in out
    assert "\\x1b]0;owned" in out


@pytest.mark.parametrize(
    "name", ["plain", "two words", "-x", "it's", "$HOME", "a\nb", "\x1b[2J", b"caf\xe9", "ü", "\\"]
)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_shell_reads_what_is_quoted_for_it(name, shell):
    text = os.fsdecode(name)
    shown = quoted(Path(text))
    assert shown.isprintable()
    if shell == "sh" and shown.startswith("$'"):
        return  # not every sh knows it
    done = subprocess.run([shell, "-c", f"printf %s {shown}"], capture_output=True, check=True)
    assert Path(os.fsdecode(done.stdout)) == Path(text)
    assert not done.stdout.startswith(b"-")


# ------------------------------------------------------------------------------- whole processes


@pytest.fixture(scope="module")
def world(world):
    """A directory with a text and a run, at the level of characters, whose names are evil."""
    from bptt.language_model import Config, train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(world / "cache"))
        (world / "evil.txt").write_text("a\x1b[2J\u202eb\x07c [bold] é\n" * 60)
        config = Config(corpus=(str(world / "evil.txt"),), level="char", hidden=8, epochs=3)
        train(
            config.changed(steps=9, batch_size=2, threads=1, flow_every=0), world / "my \x1b[2J run"
        )
    return world


ONE = {"OMP_NUM_THREADS": "1"}


def bptt(*arguments, where, stdout=subprocess.PIPE, status=0, **environment):
    given = [a if isinstance(a, bytes) else str(a) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "bptt", *given],
        cwd=where, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, timeout=120,
        env={**os.environ, "BPTT_CACHE": str(where / "cache"), **ONE, **environment},
    )  # fmt: skip
    err = done.stderr.decode(errors="surrogateescape")
    assert done.returncode == status, (done.returncode, err)
    assert "Traceback" not in err
    assert is_harmless(err), err
    return (done.stdout or b"").decode(errors="surrogateescape"), err


EVIL_RUN = "my \x1b[2J run"


def test_a_run_of_an_evil_text_and_name(world, in_process, monkeypatch):
    """In this process, without a terminal: only a sample is as it is, because it is data."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("BPTT_CACHE", str(world / "cache"))
    for arguments in (
        ["evaluate", EVIL_RUN],
        ["evaluate", EVIL_RUN, "evil.txt", "--json", "-"],
        ["flow", EVIL_RUN, "--tokens", 30],
        ["flow", EVIL_RUN, "--tokens", 9, "--json", "-"],
        ["train", "--resume", EVIL_RUN, "--epochs", 4],
    ):
        out, err = in_process(*arguments)
        assert out
        assert is_harmless(out), arguments
        assert is_harmless(err), arguments
        if "-" in arguments:
            json.loads(out)
    assert r"The run is in $'my \x1b[2J run'." in out
    out, _ = in_process("sample", EVIL_RUN, "--prompt", "a\x1b[2J", "--length", 3)
    assert out.startswith("a\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, _ = in_process("sample", EVIL_RUN, "--prompt", "a\x1b[2J", "--length", 300)
    assert out.startswith(r"a\x1b[2J")
    assert is_harmless(out)
    assert "\n" in out


def test_errors_show_names_as_they_are(in_process, world, monkeypatch):
    monkeypatch.chdir(world)
    for evil in ("\x1b[2J", "two\nlines", "[bold]x[/bold]", "\u202etxt", "caf\udce9"):
        for arguments in (
            ["train", evil],
            ["train", "--resume", evil],
            ["train", "--config", evil],
            ["train", f"--{evil}"],
            ["train", "book.txt", "--credit", evil],
            ["evaluate", evil],
            ["compare", "--task", evil],
            ["flow", "run", "--json", f"{evil}/x"],
            ["bench", "--shape", evil],
        ):
            out, err = in_process(*arguments, status=(1, 2))
            assert not out
            assert len(err.splitlines()) == 1, (arguments, err)
            assert is_harmless(err), (arguments, err)
            shown = on_one_line(evil)  # or as the parser shows it
            assert shown in err or shown.replace(r"\n", r"\x0a") in err, (arguments, err)


@pytest.mark.long
def test_names_that_are_not_utf_8_work(world):
    (world / "p").mkdir()
    name = b"p/caf\xe9.txt"
    Path(os.fsdecode(bytes(world) + b"/" + name)).write_text((world / "book.txt").read_text())
    small = ["--level", "char", "--hidden", 4, "--steps", 5, "--epochs", 1, "--threads", 1]
    out, err = bptt("train", name, *small, "--out", b"p/run\xe9", where=world)
    assert not err
    assert r"caf\xe9.txt" in out
    assert r"$'p/run\xe9'" in out
    out, _ = bptt("train", "--resume", b"p/run\xe9", "--epochs", 2, where=world)
    assert "epoch 2/2" in out
    out, _ = bptt("evaluate", b"p/run\xe9", name, "--json", b"p/\xff.json", where=world)
    assert r"caf\xe9.txt" in out
    assert json.loads((world / os.fsdecode(b"p/\xff.json")).read_text())["loss"] > 0


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii", marks=pytest.mark.long),
        pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, id="C"),
    ],
)
def test_a_locale_of_ascii(world, environment):
    out, err = bptt("evaluate", EVIL_RUN, where=world, **environment)
    assert "perplexity" in out
    assert not err
    out, err = bptt("sample", EVIL_RUN, "--length", 2000, where=world, **environment)
    assert "\\xe9" in out
    assert out.isascii()
    assert not err


@pytest.mark.long
def test_streams_that_are_closed_full_or_left(world):
    run = ["sample", EVIL_RUN, "--length", 3]
    start = f"cd '{world}'; exec '{sys.executable}' -m bptt "
    quiet = " ".join(map(quoted, map(str, run)))

    def shell(end, *, script=start + quiet):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {script} {end}"],
            capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
            env={**os.environ, "BPTT_CACHE": str(world / "cache"), **ONE},
        )  # fmt: skip
        return done.returncode, done.stderr

    assert shell(">&-") == (0, "")
    assert shell(">&- 2>&-") == (0, "")
    assert shell("<&-") == (0, "")
    status, err = shell("> /dev/full")
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    long = start.replace("exec ", "") + quiet.replace("--length 3", "--length 30000")
    assert shell("| head -c 10", script=long) == (128 + signal.SIGPIPE, "")


def test_training_goes_on_where_nothing_can_be_printed(world):
    with Path("/dev/full").open("wb") as full:
        _, err = bptt(
            "train", "book.txt", "--hidden", 4, "--epochs", 1, "--out", "unheard", where=world,
            stdout=full,
        )  # fmt: skip
    assert err.startswith("warning: standard output cannot be written (No space left on device)")
    assert err.count("\n") == 1
    assert (world / "unheard" / "model.safetensors").exists()


def test_what_is_written_is_looked_at_before_the_work(world, in_process, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr(
        "bptt._src.language_model.run.Run.load_model", lambda *_: pytest.fail("it began")
    )
    monkeypatch.setattr("bptt._src.cli.bench.bench", lambda **_: pytest.fail("it began"))
    monkeypatch.setattr("bptt._src.cli.audit.Script", lambda _: pytest.fail("it began"))
    for command, option in (
        (["evaluate", "run"], "--json"),
        (["flow", "run"], "--json"),
        (["flow", "run"], "--html"),
        (["flow", "run"], "--figure"),
        (["audit", "loop.py:train", "--module", "rnn"], "--json"),
        (["audit", "loop.py:train", "--module", "rnn"], "--html"),
        (["audit", "loop.py:train", "--module", "rnn"], "--figure"),
        (["bench"], "--json"),
        (["bench"], "--figure"),
    ):
        for place, said in (
            ("nowhere/a.svg", "make the directory nowhere first"),
            ("book.txt/a.svg", "make the directory book.txt first"),
            ("folder", "is a directory|expected a name"),
            ("x" * 260 + ".svg", "cannot be written|too long"),
            ("", "is empty"),
        ):
            _, err = in_process(*command, option, place, status=1)
            assert re.search(said, err), err
            assert option in err


def test_a_place_that_may_not_be_written(world, in_process, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr("bptt._src.cli.places.os.access", lambda path, mode, **_: mode != os.W_OK)
    _, err = in_process("evaluate", "run", "--json", "a.json", status=1)
    assert err.startswith("error: --json a.json cannot be written")


def test_what_was_measured_is_printed_before_it_is_written(world, in_process, monkeypatch):
    monkeypatch.chdir(world)
    out, err = in_process("evaluate", "run", "--json", "/dev/full", status=1)
    assert "perplexity" in out
    assert err == "error: /dev/full: No space left on device\n"
    out, err = in_process("flow", "run", "--tokens", 5, "--html", "/dev/full", status=1)
    assert "horizon" in out


def test_help_and_version_need_no_torch():
    for option in ("--help", "--version", "trian", "doctor --help", "doctor --jsn"):
        code = "import sys; sys.argv[0] = 'bptt'; from bptt._src.cli import main\ntry: main()\n"
        code += "except SystemExit: print('torch' in sys.modules)"
        command = [sys.executable, "-c", code, *option.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "False", (done.stdout, done.stderr)


def test_the_list_of_commands_says_what_each_says_of_itself():
    from importlib import import_module

    from bptt._src.cli.commands import COMMANDS

    for name, said in COMMANDS.items():
        assert import_module(f"bptt._src.cli.{name}").command.__doc__.splitlines()[0] == said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_without_torch(shell):
    asks = {
        "_BPTT_COMPLETE": f"complete_{shell}",
        **{"COMP_WORDS": "bptt ev", "COMP_CWORD": "1"},  # as bash asks
        **{"_TYPER_COMPLETE_ARGS": "bptt ev", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    code = (
        "import sys\nfrom bptt._src.cli import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asks, capture_output=True, text=True
    )
    assert "evaluate" in done.stdout
    assert not done.stderr
