"""The commands of docs/start.md run, in its order, and print lines of the form that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bptt._src.doctor import checkup

PAGE = Path(__file__).parents[2] / "docs" / "start.md"
if not PAGE.exists():
    pytest.skip("there is no checkout", allow_module_level=True)
BLOCK = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"train": ["--hidden", "8", "--batch-size", "4", "--threads", "1"]}
FREE = ("sample",)  # what a model writes has no form
DEPENDS = re.compile(r"^(update|Updates|alarm|How far)|^ ")
"""Lines that come where training is slow or goes wrong, and lines that go on with others."""


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the page, with the lines that it prints there."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        for line in block[1].splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def forms(lines: list[str]) -> list[str]:
    """How lines begin, without figures: their first word, or two where one has a colon."""
    kept = [line for line in lines if line.strip() and not DEPENDS.match(line)]
    words = [re.sub(r"[\d.,]+", "#", line).split() for line in kept]
    return [" ".join(w[:2]) if len(w) > 1 and w[0] != "book:" else w[0] for w in words]


def test_the_commands(in_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        checkup, "TRIAL", f"from bptt._src.doctor import trial; trial.SECONDS = 0; {checkup.TRIAL}"
    )
    ran = []
    for command, shown in commands():
        program, *arguments = shlex.split(command.partition(" > ")[0])
        if program == "python3":
            text = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True, check=True
            ).stdout
            Path(command.partition(" > ")[2]).write_text(text[:12_000])
            continue
        assert program == "bptt"
        name = arguments[0]
        is_new = name == "train" and "--resume" not in arguments
        out, _ = in_process(*arguments, *(SMALL[name] if is_new else ()))
        ran.append(name)
        assert out
        if name == "doctor":  # its states are this machine's
            mine, pages = ({line.split()[1] for line in text if line[:1].isalpha()} for text in (
                out.splitlines(), shown,
            ))  # fmt: skip
            assert mine == pages | {"works.", "speed"}
        elif name not in FREE and shown:
            most = 2 if name == "flow" else None  # what comes after depends on what it finds
            assert forms(out.splitlines())[:most] == forms(shown)[:most], out
    assert ran == ["doctor", "train", "sample", "evaluate", "flow", "train"]
