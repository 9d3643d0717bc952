"""The tables, for a terminal of 100 columns and for a file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bptt.errors import needs

with needs("lm"):
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

from bptt._src.bench.ranks import ONE, SEVERAL, THREADS, how, share_of_sum, updates_per_second
from bptt._src.bench.result import (
    ALONE,
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
    Row,
)
from bptt._src.bench.search import against_fastest, compared, fastest_peer, summaries
from bptt._src.bench.sight import share_of
from bptt._src.numbers import ABSENT, number

WIDTH = 100
WORST = 15
SHORT = {OURS: "bptt", TORCH: "torch", JAX: "JAX"}
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
    for title, section, write in (
        (f"A training step of a layer; shape: T/B/I/H{LEGEND}", "kernels", _steps),
        (f"A training step of a whole language model; shape: V/H/B/T{LEGEND}", "model", _steps),
        ("A window of 5 steps behind each loss, Truncated(every=1, reach=5)", "credit", _windows),
        (
            "What seeing how far the gradient reaches adds; shape: V/H/B/T",
            "sight",
            _sight,
        ),
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
            "Layers of random shapes: the time of torch.nn's fastest, in multiples of bptt's",
            "search",
            _sums,
        ),
        (f"The {WORST} worst of them; shape: T/B/I/H", "search", _worst),
    ):
        rows = [row for row in found.rows if row.section == section]
        if rows:
            console.print(f"\n{title}", markup=False)
            console.print(write(rows, found.peak, width))
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
        lines.append(f"Fused multiply-adds at most: {first}.")
        lines.append(f"The best large matrix product: {product:,.0f} GFLOP/s{share}, {best}.")
    return lines


Column = tuple[str, Callable[[Row], str]]


def _steps(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    table = _table(rows, _columns(rows, peak, ("ms", "GF/s", "peak")))
    if Console(width=1000).measure(table).maximum > width:
        table = _table(rows, _columns(rows, peak, ("ms", "peak")))
    return table


def _columns(rows: Sequence[Row], peak: float | None, units: Sequence[str]) -> list[Column]:
    names = [n for n in SHORT if any(n in row.seconds for row in rows)]
    write: dict[str, Callable[[Row, str], str]] = {
        "ms": lambda row, n: number(row.milliseconds(n)),
        "GF/s": lambda row, n: number(row.gflops(n)),
        "peak": lambda row, n: percent(row.share(n, peak)),
    }
    found: list[Column] = [
        (f"{SHORT[n]}\n{unit}", partial(_write, write[unit], n)) for unit in units for n in names
    ]
    ratio = partial(_write, lambda row, n: number(row.ratio(n)))
    found += [(f"{SHORT[n]}\n/{OURS}", partial(ratio, n)) for n in names if n != OURS]
    if any(row.tokens for row in rows):
        found += [(f"{SHORT[n]}\ntokens/s", partial(_write, _tokens, n)) for n in names]
    return found


def _write(value: Callable[[Row, str], str], name: str, row: Row) -> str:
    return value(row, name)


def _tokens(row: Row, name: str) -> str:
    ms = row.milliseconds(name)
    return ABSENT if ms is None or row.tokens is None else f"{1e3 * row.tokens / ms:,.0f}"


def _windows(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    return _table(
        rows,
        [
            ("exact\nms", lambda row: number(row.milliseconds(EXACT))),
            ("windows\nms", lambda row: number(row.milliseconds(WINDOWS))),
            ("windows\n/exact", lambda row: number(row.ratio(WINDOWS))),
        ],
    )


def _sight(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    columns: list[Column] = [
        (f"{name}\nms", partial(_write, lambda row, n: number(row.milliseconds(n)), name))
        for name in (UPDATE, HEARD, TOLD, LOOK)
    ]
    return _table(rows, [*columns, ("share\nof time", lambda row: percent(share_of(row)))])


def _ranks(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    columns: list[Column] = []
    short = {ONE: "1 thread", THREADS: "2 thr.", SEVERAL: "2 proc."}
    for who in (OURS, TORCH):
        for trained, header in short.items():
            value = partial(_write, lambda row, n: number(updates_per_second(row, n)))
            columns.append((f"{SHORT[who]}\n{header}", partial(value, how(who, trained))))
        columns.append((f"{SHORT[who]}\nsum", partial(_write, _share_of_sum, who)))
    return _table(rows, columns)


def _share_of_sum(row: Row, who: str) -> str:
    return percent(share_of_sum(row, who))


def _crowded(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    return _table(
        rows,
        [
            ("one thread\nms", lambda row: number(row.milliseconds(ALONE))),
            ("bptt\nms", lambda row: number(row.milliseconds(OURS))),
            ("torch\nms", lambda row: number(row.milliseconds(TORCH))),
            ("bptt\n/one thread", lambda row: number(row.ratio(OURS))),
            ("torch\n/one thread", lambda row: number(row.ratio(TORCH))),
        ],
    )


def _sums(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    lines = [(s.name, f"{s.cases}", number(s.median), f"{s.below}") for s in summaries(rows)]
    return _lay_out([""], ["shapes", "median", "below 1"], lines)


def _worst(rows: Sequence[Row], peak: float | None, width: int) -> Table:
    def of_peak(row: Row) -> str:  # that of float32: none was measured for bfloat16
        return percent(row.share(OURS, peak) if row.base == OURS else None)

    return _table(
        compared(rows)[:WORST],
        [
            ("bptt\nms", lambda row: number(row.milliseconds(row.base))),
            ("bptt\npeak", of_peak),
            ("fastest\nms", lambda row: number(row.milliseconds(fastest_peer(row)))),
            ("fastest\n/bptt", lambda row: number(against_fastest(row))),
            ("\nfastest", fastest_peer),
        ],
    )


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    lines = [(row.name, row.shape, *(of(row) for _, of in columns)) for row in rows]
    return _lay_out(["", "shape"], [header for header, _ in columns], lines)


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


def percent(value: float | None) -> str:
    """Write a share; one digit more where it is small."""
    if value is None:
        return ABSENT
    return f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"


def duration(seconds: float) -> str:
    """Write a time in the unit that it fills."""
    for unit, one in (("h", 3600.0), ("min", 60.0)):
        if seconds >= one:
            return f"{seconds / one:,.1f} {unit}"
    return f"{seconds:.1f} s"
