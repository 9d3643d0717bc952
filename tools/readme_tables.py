"""Print the tables of README.md and docs/bench.md from what ``bptt bench --json`` wrote.

That of ``kernels`` is in README.md, "How fast it is"; that of ``model`` is in docs/bench.md, "What
it measured". The others are for whoever wants to look at a part.

``python tools/readme_tables.py FILE [FILE ...]``: the rows of all files together; the conditions
are those of the first. A table whose part was not measured is left out.

    bptt bench --rounds 11 --json usual.json --figure docs/images/bench.svg
    bptt bench --search 500 --threads 1 --json search.json
    python tools/readme_tables.py usual.json search.json
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bptt._src.bench.result import CELL, CONVERTED, JAX, OURS, TORCH, Peaks
from bptt._src.bench.search import compared, summaries
from bptt._src.bench.table import percent
from bptt._src.numbers import ABSENT, number
from bptt.bench import Row

Column = Callable[[Row], str]


def read_row(found: dict[str, Any]) -> Row:
    """Make the row that was written."""
    contenders = found["contenders"].items()
    seconds = {n: [ms / 1e3 for ms in c["milliseconds_of_rounds"]] for n, c in contenders}
    about = {key: found.get(key) for key in ("section", "name", "shape", "flop", "tokens", "base")}
    return Row(seconds=seconds, **about)  # type: ignore[arg-type]


def table(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table of Markdown."""
    rows = [headers, ["---"] * len(headers), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def times(value: float | None) -> str:
    """Write a ratio."""
    return ABSENT if value is None else f"{number(value)}×"


def median(write: Callable[[float | None], str], values: Iterable[float | None]) -> str:
    """Write the median of those that there are."""
    there = [value for value in values if value is not None]
    return write(statistics.median(there)) if there else ABSENT


def layers(rows: Sequence[Row], peaks: Peaks) -> str:
    """Write a line for each shape, a column for each cell: time, torch, JAX, share of the peak."""
    cells = list(dict.fromkeys(row.name for row in rows))
    found = {(row.shape, row.name): row for row in rows}
    names = [n for n in (TORCH, JAX) if any(n in row.seconds for row in rows)]

    def figures(those: Sequence[Row]) -> list[str]:
        ratios = [median(times, (row.ratio(n) for row in those)) for n in names]
        return [*ratios, median(percent, (row.share(OURS, peaks) for row in those))]

    def cell(row: Row | None) -> str:
        if row is None:
            return ABSENT
        return ", ".join([f"{number(row.milliseconds(OURS))} ms", *figures([row])])

    shapes = dict.fromkeys(row.shape for row in rows)
    lines = [[shape, *(cell(found.get((shape, c))) for c in cells)] for shape in shapes]
    medians = [", ".join(figures([row for row in rows if row.name == c])) for c in cells]
    return table(["T/B/I/H", *cells], [*lines, ["median", *medians]])


def cases(rows: Sequence[Row], peaks: Peaks) -> str:
    """Write a line for each case: time or rate, the others by it, share of the peak."""
    columns: dict[str, Column] = {
        "milliseconds": lambda row: number(row.milliseconds(row.base)),
        "torch": lambda row: times(row.ratio(row.name_of(TORCH))),
        "torch's cell": lambda row: times(row.ratio(row.name_of(CELL))),
        "torch .bfloat16()": lambda row: times(row.ratio(CONVERTED[TORCH])),
        "its cell .bfloat16()": lambda row: times(row.ratio(CONVERTED[CELL])),
        "bptt in float32": lambda row: times(row.ratio(OURS) if row.is_bf16 else None),
        "share of the peak": lambda row: percent(row.share(row.base, peaks)),
    }
    if all(row.tokens and row.flop is None for row in rows):
        rate = {"tokens/s": lambda row: f"{1e3 * row.tokens / row.milliseconds(row.base):,.0f}"}
        columns = rate | {name: columns[name] for name in columns if name != "milliseconds"}
    shown = {n: write for n, write in columns.items() if {write(r) for r in rows} != {ABSENT}}
    lines = [[f"{row.name} {row.shape}", *(write(row) for write in shown.values())] for row in rows]
    return table(["", *shown], lines)


def search(rows: Sequence[Row], peaks: Peaks) -> str:
    """Write a line for each kind of case, and the worst of all."""
    lines = [[s.name, f"{s.cases}", times(s.median), f"{s.below}"] for s in summaries(rows)]
    worst = cases(compared(rows)[:5], peaks)
    return f"{table(['', 'shapes', 'median', 'below 1'], lines)}\n\nThe worst:\n\n{worst}"


TABLES = dict.fromkeys(
    ("model", "bf16", "acting", "sampling", "evaluation", "readout", "variants"), cases
)
TABLES = {"kernels": layers} | TABLES | {"search": search}


def main(paths: Sequence[str]) -> str:
    """Return all tables, and before them what they were measured on."""
    found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    c, peak = found[0]["conditions"], found[0]["limits"]["fma_peak"]
    peaks = Peaks(peak["gflop_per_second"], peak["gflop_per_second_bf16"])
    jax = f", JAX {c['jax']}" if c["jax"] else ""
    parts = [
        f"{c['processor']}, {c['threads']} threads: {c['kernels']}; torch {c['torch']}{jax}; "
        f"peak of fused multiply-adds {number(peaks.float32)} GFLOP/s, of bfloat16 "
        f"{number(peaks.bfloat16)}; {c['rounds']} rounds."
    ]
    for section, write in TABLES.items():
        written = [row for one in found for row in one["rows"] if row["section"] == section]
        if written:
            parts.append(f"{section}:\n\n{write(list(map(read_row, written)), peaks)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
