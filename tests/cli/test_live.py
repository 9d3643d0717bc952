"""``bptt train`` on a terminal: a line that moves, a table, and nothing left behind."""

from __future__ import annotations

import re

import pytest
from cli.pseudo_terminal import Screen, Terminal
from rich.console import Console

from bptt._src.cli.live import COLUMNS, UNUSED, EpochTable, Now, clock

ROW = {"epoch": "1/3", "train ppl": "9.00", "valid ppl": "8.00", "bits/char": "1.200"}
ROW |= {"horizon": "≥ 12", "tokens/s": "1,000", "time": "0:07", "best": "best"}
SMALL = ["--level", "char", "--hidden", 8, "--batch-size", 2, "--steps", 9, "--threads", 1]


@pytest.fixture
def terminal(world, tmp_path):
    """Start commands on terminals of their own, where there is a book."""
    (tmp_path / "book.txt").write_text((world / "book.txt").read_text() * 3)
    started = []

    def start(*arguments, **how):
        how["environment"] = {"OMP_NUM_THREADS": "1", **how.get("environment", {})}
        started.append(Terminal(*arguments, cwd=tmp_path, **how))
        return started[-1]

    yield start
    for t in started:
        t.close()


def screen(t: Terminal) -> Screen:
    return Screen(t.columns).feed(t.text)


def frames(t: Terminal) -> list[str]:
    """What the line that moves has shown, each time."""
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", t.text)
    return re.findall(r"epoch \d+/\d+  [^\r\n]*loss [\d.]+[^\r\n]*", plain)


@pytest.mark.parametrize("columns", [40, 100])
def test_a_run_leaves_a_table_and_no_remains(terminal, columns):
    t = terminal("train", "book.txt", *SMALL, "--epochs", 3, "--out", "run", columns=columns)
    assert t.end() == 0
    s = screen(t)
    assert s.cursor_is_shown
    assert frames(t)
    assert max(map(len, frames(t))) <= columns - UNUSED
    assert not any("left" in line or "━" in line or "evaluating" in line for line in s.shown)
    (header,) = (n for n, line in enumerate(s.shown) if line.startswith("epoch "))
    rows = s.shown[header + 2 : header + 5]
    assert [row.split()[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert all(row.endswith(" best") for row in rows[:1])
    assert ("tokens/s" in s.shown[header]) is (columns == 100)
    assert s.shown[-2] == "The run is in run."
    assert s.styles & {"32", "36"}  # in colours
    plain = " ".join(s.shown)
    assert re.search(r"Text: book.txt; [\d,]+ char tokens", plain)
    assert "Validation perplexity" in plain


def test_ctrl_c_and_going_on(terminal):
    t = terminal("train", "book.txt", *SMALL, "--epochs", 2000, "--out", "run")
    t.wait_for(r"left")
    t.type(b"\x03")
    assert t.end() == 130
    s = screen(t)
    assert "^C" in t.text
    assert not any("^C" in line or "left" in line for line in s.shown)
    assert any(line.startswith("Interrupted and saved; go on with: bptt tr") for line in s.shown)
    assert s.cursor_is_shown
    made = int(re.findall(r"update ([\d,]+)", t.text)[-1].replace(",", ""))  # of the table's row

    again = terminal("train", "--resume", "run", "--max-minutes", 0.02)
    assert again.end() == 0
    assert f"Run: run (going on after update {made:,})." in screen(again).shown
    assert all(
        int(n.replace(",", "")) > made for n in re.findall(r" update ([\d,]+)  ", again.text)
    )
    assert frames(again)


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_without_colours_or_without_controls(terminal, name):
    environment = {"NO_COLOR": {"NO_COLOR": "1"}, "TERM": {"TERM": "dumb"}}[name]
    how = {"environment": environment, "columns": 200}
    t = terminal("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", **how)
    assert t.end() == 0
    assert not {s for s in screen(t).styles if re.fullmatch(r"[349]\d|38|48", s)}
    if name == "TERM":
        assert "\x1b" not in t.text
        assert re.search(r"^epoch 1/1 +training perplexity .* tokens/s\r$", t.text, re.MULTILINE)
    else:
        assert frames(t)


def test_warnings_go_where_the_errors_go(terminal, tmp_path):
    with (tmp_path / "book.txt").open("ab") as file:
        file.write(b"caf\xe9\n")
    with (tmp_path / "err").open("wb") as file:
        t = terminal("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", stderr=file)
        assert t.end() == 0
    assert (tmp_path / "err").read_text().startswith("warning: ")
    assert "warning" not in t.text
    other = terminal("train", "book.txt", *SMALL, "--epochs", 1, "--out", "other")
    assert other.end() == 0
    assert any(line.startswith("warning: ") for line in screen(other).shown)


def test_quiet_is_quiet(terminal):
    t = terminal("train", "book.txt", *SMALL, "--epochs", 1, "--out", "run", "-q")
    assert (t.end(), t.text) == (0, "")


# ------------------------------------------------------------------------------------ its parts


@pytest.mark.parametrize("width", [*range(1, 100), 200])
def test_the_line_fits_and_loses_the_least_important_first(width):
    now = Now("3/10", 0.31, 1234, 4.0123, 10523.0, 83.0, False)
    console = Console(width=width)
    with console.capture() as shown:
        console.print(now)
    line = shown.get().rstrip("\n")
    assert "\n" not in line or width < len("epoch 3/10") + UNUSED
    order = ["epoch 3/10", "loss 4.012", "31 %", "1:23 left", "update 1,234", "10,523 tokens/s"]
    there = [part in line for part in order]
    if width >= len("epoch 3/10") + UNUSED:
        assert len(line) <= width - UNUSED
        assert there == sorted(there, reverse=True)
        assert there[0]
    if width == 200:
        assert all(there)
        assert "━" in line


@pytest.mark.parametrize("width", [10, 30, 45, 60, 75, 90])
def test_the_table_fits_and_its_header_is_repeated_when_it_changes(width):
    table = EpochTable()
    first = [str(line) for line in table.rows(ROW, width)]
    assert [line.split()[:1] for line in first[:2]] == [[], ["epoch"]]
    assert max(map(len, first)) <= max(width, COLUMNS["epoch"][1])
    (second,) = table.rows(ROW, width)
    assert str(second) == first[-1]
    assert len([*table.rows(ROW, 200)]) == (4 if width < 81 else 1)
    if width >= 30:
        assert "8.00" in first[-1]


def test_the_share_of_unknown_tokens_stands_beside_the_perplexities():
    table = EpochTable()
    table.under = {"train ppl": "1.8 % unk", "valid ppl": "7.0 % unk"}
    _, names, under, *_ = map(str, table.rows(ROW, 100))
    assert under.index("7.0 % unk") + 9 == names.index("valid ppl") + 9


def test_a_duration():
    assert [clock(s) for s in (0, 59.9, 3600, None, float("inf"))] == [
        *("0:00", "0:59", "1:00:00", "-:--", "-:--")
    ]
