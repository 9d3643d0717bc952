"""The tables, for a terminal of 100 columns and for a file."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from bptt.errors import needs

with needs("lm"):
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

from bptt._src.bench.ranks import ONE, SEVERAL, THREADS, how, share_of_sum, updates_per_second
from bptt._src.bench.result import (
    ALONE,
    CELL,
    CONVERTED,
    EXACT,
    HEARD,
    JAX,
    LOOK,
    OURS,
    TEXTBOOK,
    TOLD,
    TORCH,
    UPDATE,
    WINDOWS,
    Bench,
    Peaks,
    Row,
)
from bptt._src.bench.search import against_fastest, compared, fastest_peer, summaries
from bptt._src.bench.sight import share_of
from bptt._src.numbers import ABSENT, number

WIDTH = 100
WORST = 15
PAIR = (OURS, TORCH)
NO_PEAKS = Peaks()
SHORT = {OURS: "bptt", TORCH: "torch", CELL: "cell", JAX: "JAX"} | {
    CONVERTED[TORCH]: "torch*",
    CONVERTED[CELL]: "cell*",
}
LEGEND = ". GF/s: GFLOP/s; peak: the share of it"
BUSY = 0.5  # runnable processes besides this one, from which on it is said


def print_bench(found: Bench, console: Console) -> None:
    """Print what was measured; on a narrow terminal without the GFLOP/s."""
    width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(write_bench(found, width), markup=False)


def write_bench(found: Bench, width: int = WIDTH) -> str:
    """Write what was measured as plain text."""
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)
    console.print("\n".join(conditions_of(found)), markup=False)
    for title, section, write in _TABLES:
        rows = [row for row in found.rows if row.section == section]
        if rows:
            console.print(f"\n{title}", markup=False)
            console.print(write(rows, found.peaks, width))
    console.print("\n".join([*_seed(found), *_start(found), *_remarks(found)]), markup=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    text = "\n".join(line.rstrip() for line in text.splitlines()).strip()
    return re.sub(r"\n{3,}", "\n\n", text)


def conditions_of(found: Bench) -> list[str]:
    """Describe what ran, on which processor, and what that can do."""
    c = found.conditions
    jax = f", JAX {c['jax']}" if c["jax"] else ""
    system = c["system"].partition("-")[0]
    lines = [
        f"{c['processor']}, {c['processors']} processors; {c['threads']} thread"
        f"{'s' * (c['threads'] != 1)} for everyone.",
        f"bptt {c['bptt']}: {c['kernels']}.",
        f"torch {c['torch']}, NumPy {c['numpy']}{jax}, Python {c['python']}; {system}.",
    ]
    if found.limits is not None:
        peak, best = found.limits.peak, found.limits.best
        first = f"not measured, {found.limits.no_peak}" if peak is None else f"{peak:,.0f} GFLOP/s"
        product = found.limits.products[best]
        share = "" if peak is None else f", {product / peak:.0%} of it"
        bf16 = found.limits.peak_bf16
        second = "" if bf16 is None else f"; of bfloat16 {bf16:,.0f}"
        lines.append(f"Fused multiply-adds at most: {first}{second}.")
        lines.append(f"The best large matrix product: {product:,.0f} GFLOP/s{share}, {best}.")
    return lines


class Column(NamedTuple):
    """A column of numbers."""

    header: str
    value: Callable[[Row], float | None]
    write: Callable[[float | None], str] = number
    has_median: bool = False
    """Whether the median of all rows is written below."""


def _steps(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    """Lay out times, shares of the peak and ratios, and the GFLOP/s where there is room."""
    table = _table(rows, _columns(rows, ("ms", "GF/s", "peak"), peaks))
    if Console(width=1000).measure(table).maximum > width:
        table = _table(rows, _columns(rows, ("ms", "peak"), peaks))
    return table


def _times(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    return _table(rows, _columns(rows, ("ms",)))


def _rates(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    return _table(rows, _columns(rows, ("tokens/s",)))


def _in_bf16(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    in_fp32 = Column("float32\n/bptt", lambda row: row.ratio(OURS), has_median=True)
    return _table(rows, [*_columns(rows, ("ms", "GF/s", "peak"), peaks), in_fp32])


def _columns(rows: Sequence[Row], units: Sequence[str], peaks: Peaks = NO_PEAKS) -> list[Column]:
    """Return the columns of everyone, by the names that they have in a row's precision."""
    names = [n for n in SHORT if any(row.name_of(n) in row.seconds for row in rows)]

    def column(unit: str, name: str, header: str = "") -> Column:
        of, write, has_median = _UNITS[unit]
        header = header or f"{SHORT[name]}\n{unit}"
        return Column(header, lambda row: of(row, row.name_of(name), peaks), write, has_median)

    found = [column(unit, n) for unit in units for n in names]
    found += [column("ratio", n, f"{SHORT[n]}\n/{OURS}") for n in names if n != OURS]
    if "peak" in units and all(row.tokens for row in rows):
        found += [column("tokens/s", n) for n in names]
    return found


def _tokens(row: Row, name: str, peaks: Peaks) -> float | None:
    ms = row.milliseconds(name)
    return None if ms is None or row.tokens is None else 1e3 * row.tokens / ms


def _write_whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Write a share; one digit more where it is small."""
    if value is None:
        return ABSENT
    return f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"


_UNITS: dict[
    str,
    tuple[Callable[[Row, str, Peaks], float | None], Callable[[float | None], str], bool],
] = {
    "ms": (lambda row, name, peaks: row.milliseconds(name), number, False),
    "GF/s": (lambda row, name, peaks: row.gflops(name), number, False),
    "peak": (Row.share, percent, True),
    "ratio": (lambda row, name, peaks: row.ratio(name), number, True),
    "tokens/s": (_tokens, _write_whole, False),
}
"""Of each the value, how it is written, and whether its median is."""


def _windows(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    return _table(
        rows,
        [
            Column("exact\nms", lambda row: row.milliseconds(EXACT)),
            Column("windows\nms", lambda row: row.milliseconds(WINDOWS)),
            Column("windows\n/exact", lambda row: row.ratio(WINDOWS)),
        ],
    )


def _sight(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    columns = [Column(f"{n}\nms", partial(_milliseconds, n)) for n in (UPDATE, HEARD, TOLD, LOOK)]
    return _table(rows, [*columns, Column("share\nof time", share_of, percent)])


def _milliseconds(name: str, row: Row) -> float | None:
    return row.milliseconds(name)


def _ranks(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    columns: list[Column] = []
    short = {ONE: "1 thread", THREADS: "2 thr.", SEVERAL: "2 proc."}
    for who in (OURS, TORCH):
        for trained, header in short.items():
            rate = partial(updates_per_second, contender=how(who, trained))
            columns.append(Column(f"{SHORT[who]}\n{header}", rate))
        share = partial(share_of_sum, who=who)
        columns.append(Column(f"{SHORT[who]}\nsum", share, percent))
    return _table(rows, columns)


def _crowded(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    return _table(
        rows,
        [
            Column("one thread\nms", lambda row: row.milliseconds(ALONE)),
            Column("bptt\nms", lambda row: row.milliseconds(OURS)),
            Column("torch\nms", lambda row: row.milliseconds(TORCH)),
            Column("bptt\n/one thread", lambda row: row.ratio(OURS)),
            Column("torch\n/one thread", lambda row: row.ratio(TORCH)),
        ],
    )


def _memory(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    faults = [Column(f"{SHORT[n]}\nfaults", partial(_faults, n), _write_whole) for n in PAIR]
    return _table(rows, [*_columns(rows, ("ms",)), *faults])


def _faults(name: str, row: Row) -> float | None:
    return (row.faults or {}).get(name)


def _sums(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    lines = [(s.name, f"{s.cases}", number(s.median), f"{s.below}") for s in summaries(rows)]
    return _lay_out([""], ["shapes", "median", "below 1"], lines)


def _worst(rows: Sequence[Row], peaks: Peaks, width: int) -> Table:
    lines = [
        (
            row.name,
            row.shape,
            number(row.milliseconds(row.base)),
            percent(row.share(row.base, peaks)),
            number(row.milliseconds(fastest_peer(row))),
            number(against_fastest(row)),
            fastest_peer(row),
        )
        for row in compared(rows)[:WORST]
    ]
    headers = ["bptt\nms", "bptt\npeak", "fastest\nms", "fastest\n/bptt", "\nfastest"]
    return _lay_out(["", "shape"], headers, lines)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    lines = [(row.name, row.shape, *(c.write(c.value(row)) for c in columns)) for row in rows]
    for name, those in (
        ("median", [row for row in rows if not row.is_bf16]),
        ("median bf16", [row for row in rows if row.is_bf16]),
    ):
        medians = [_median(column, those) if column.has_median else "" for column in columns]
        if len(those) > 2 and any(medians):
            lines.append((name, "", *medians))
    return _lay_out(["", "shape"], [column.header for column in columns], lines)


def _median(column: Column, rows: Sequence[Row]) -> str:
    values = [value for row in rows if (value := column.value(row)) is not None]
    return column.write(statistics.median(values)) if values else ""


def _lay_out(words: Sequence[str], numbers: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """Make a table with columns of words, then of numbers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    for header in words:
        table.add_column(header, no_wrap=True)
    for header in numbers:
        table.add_column(header, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


_TABLES = (
    (f"A training step of a layer; shape: T/B/I/H{LEGEND}", "kernels", _steps),
    (f"A training step of a whole language model; shape: V/H/B/T{LEGEND}", "model", _steps),
    (
        "Both under autocast to bfloat16, and bptt in float32. GF/s: GFLOP/s; peak: of bfloat16",
        "bf16",
        _in_bf16,
    ),
    (
        "A forward pass of few rows; shape: T/B/I/H; cell: torch's, step by step; *: .bfloat16()",
        "acting",
        _times,
    ),
    ("Tokens/s that a language model writes; shape: V/H/B/tokens", "sampling", _rates),
    ("Tokens/s that a language model reads; shape: V/H/streams/T", "evaluation", _rates),
    (f"A readout, its loss and their gradients; shape: V/H/rows{LEGEND}", "readout", _steps),
    (f"A training step of other layers; shape: T/B/I/H{LEGEND}", "variants", _steps),
    ("A window of 5 steps behind each loss, Truncated(every=1, reach=5)", "credit", _windows),
    ("What seeing how far the gradient reaches adds; shape: V/H/B/T", "sight", _sight),
    (
        "Updates/s in one process and in two; shape: V/H/B/T; sum: its share of the time",
        "ranks",
        _ranks,
    ),
    (
        "A training step of a layer whose threads have to share processors; shape: T/B/I/H",
        "threads",
        _crowded,
    ),
    (
        "Page faults, and a training step with memory that the process keeps; shape: T/B/I/H",
        "memory",
        _memory,
    ),
    (
        "Layers of random shapes: the time of torch.nn's fastest, in multiples of bptt's",
        "search",
        _sums,
    ),
    (f"The {WORST} worst of them; shape: T/B/I/H", "search", _worst),
)
"""The title of each table, whose section's rows are in it, and how it is written."""


def _seed(found: Bench) -> list[str]:
    epoch = found.seed_epoch
    if epoch is None:
        return []
    lines = [
        f"seed epoch: {epoch.sentences:,} sentences of about 25 words, one an update, vocabulary "
        "8000, hidden 100"
    ]
    for name in (OURS, TORCH, TEXTBOOK):
        _, measured = epoch.measured[name]
        how = "all of it run"
        if measured < epoch.sentences:
            how = f"extrapolated from {measured:,} sentences"
        seconds = epoch.seconds(name)
        ratio = "" if name == OURS else f", {number(seconds / epoch.seconds(OURS))} times {OURS}"
        lines.append(f"  {name:<9} {duration(seconds):>8}{ratio} ({how})")
    return ["", *lines]


def _start(found: Bench) -> list[str]:
    start = found.start
    if start is None:
        return []
    load = "no library is loaded" if start.load is None else f"{number(start.load)} ms to load"
    return [
        "",
        f"In a fresh process: {load}; the first training step of an LSTM of 100 at T/B 20/1 takes "
        f"{number(start.first_call)} ms, later ones {number(start.later_call)} ms.",
    ]


def _remarks(found: Bench) -> list[str]:
    c = found.conditions
    notes = [*found.notes, *(note for row in found.rows for note in row.notes)]
    if found.rows:
        most = "at most " if found.interrupted else ""
        notes.append(
            f"Times are medians over {most}{c['rounds']} rounds in which the contenders take "
            "turns, ratios the medians of those within a round."
        )
    if c["load"] is not None and c["load"] >= BUSY:
        notes.append(
            f"The machine was busy when this began (load {c['load']:.1f}): measure again when it "
            "is not."
        )
    return ["", *(note if note.endswith(".") else f"{note}." for note in notes)]


def duration(seconds: float) -> str:
    """Write a time in the unit that it fills."""
    for unit, one in (("h", 3600.0), ("min", 60.0)):
        if seconds >= one:
            return f"{seconds / one:,.1f} {unit}"
    return f"{seconds:.1f} s"
