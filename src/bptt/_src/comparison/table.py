"""The table and the verdicts, for a terminal of 100 columns and for a file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bptt.errors import needs

with needs("lm"):
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

from bptt._src.networks import title
from bptt._src.numbers import ABSENT, number, size

if TYPE_CHECKING:
    from bptt._src.comparison.result import Comparison, Figures

WIDTH = 100
COLUMNS = (
    "loss",
    "range",
    "solved",
    "updates",
    "seconds",
    "ms per\nupdate",
    "peak\nmemory",
    "bias",
    "variance",
)


def print_comparison(found: Comparison, console: Console) -> None:
    """Print a comparison; a narrow terminal omits the range and the noise of the bias."""
    if console.is_terminal:
        console.print(_written(found, wide=console.width >= WIDTH))
    else:
        console.print(write_comparison(found), markup=False)


def write_comparison(found: Comparison) -> str:
    """Format a comparison as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, emoji=False, markup=False)
    console.print(_written(found))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _written(found: Comparison, *, wide: bool = True) -> Group:
    c = found.conditions
    seeds = f"{found.seeds} seed{'' if found.seeds == 1 else 's'}"
    how = (
        f"{c['optimizer'].capitalize()} {c['learning_rate']:g}, batches of "
        f"{found.options['batch_size']}, at most {c['updates']:,} updates, {seeds}."
    )
    sentences = [Text(s) for s in (*found.verdicts().values(), *found.notes)]
    about = Text(f"{heading(found)}. {how}")
    ways = [(True, 1), (True, 0), (False, 1), (False, 0)] if wide else [(False, 1), (False, 0)]
    tables = [_table(found, wide=w, apart=apart) for w, apart in ways]
    fitting = (t for t in tables if Console(width=1000).measure(t).maximum <= WIDTH)
    table = next(fitting, tables[-1])
    return Group(about, table, Text(_caption(found)), Text(), *sentences)


def heading(found: Comparison) -> str:
    """Describe what was compared."""
    c = found.conditions
    options = [(k, v) for k, v in found.options.items() if v is not None and k != "batch_size"]
    given = ", ".join(f"{k.replace('_', ' ')} {_spelled(v)}" for k, v in options)
    return f"{found.task}: {given}; {c['layers']} × {title(c['cell'])} of {c['hidden']}"


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _caption(found: Comparison) -> str:
    of = "a unigram model" if found.is_text else "a model without memory"
    return (
        f"{found.measure.capitalize()} of {of}: {number(found.shown(found.baseline))}; solved: "
        f"{number(found.shown(found.target))} or less. Updates, seconds: until then, the median. "
        "Memory: the peak of a forward and backward pass. Bias, variance: of the gradient at the "
        "end, relative to the exact one."
    )


def _table(found: Comparison, *, wide: bool, apart: int = 1) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, apart, 0, 0), pad_edge=False, expand=False)
    table.add_column("credit", overflow="fold", max_width=24)
    shown = [i for i, name in enumerate(COLUMNS) if wide or name != "range"]
    for i in shown:
        header = found.measure if COLUMNS[i] == "loss" else COLUMNS[i]
        table.add_column(header, justify="right", no_wrap=True)
    for result in found.credits:
        line = figures_of(found.figures(result), wide=wide)
        table.add_row(result.spelling, *(line[i] for i in shown))
    return table


def figures_of(f: Figures, *, wide: bool = True) -> list[str]:
    """Format the figures of a line, in the order of :data:`COLUMNS`."""
    return [
        "diverged" if f.loss is None else number(f.loss),
        _range(f),
        f"{f.solved} of {f.runs}",
        ABSENT if f.updates is None else f"{f.updates:,}",
        ABSENT if f.seconds is None else f"{f.seconds:,.1f}",
        number(f.milliseconds),
        ABSENT if f.peak_bytes is None else size(f.peak_bytes),
        number(f.bias) + (f" ±{number(f.bias_noise)}" if f.bias_noise and wide else ""),
        number(f.variance),
    ]


def _range(f: Figures) -> str:
    if f.loss_least is None or f.loss_most is None:
        return ABSENT
    return f"{number(f.loss_least)}..{number(f.loss_most)}"
