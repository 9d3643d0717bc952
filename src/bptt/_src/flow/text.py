"""Flows as plain text: a table, and for each its verdict and what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bptt._src.controls import on_one_line
from bptt._src.flow.truncation import tail

if TYPE_CHECKING:
    from bptt._src.flow.flow import GradientFlow

HEAD = ("", "steps", "loss", "horizon", "decay a step", "suggested reach", "verdict")
WIDTH = 100  # columns


def as_text(flows: Sequence[GradientFlow]) -> str:
    """Write flows as text, a row each."""
    rows: list[tuple[str, ...]] = [HEAD, *map(_row, flows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]])
        for row in rows
    ]
    for f in flows:
        lines += ["", *_wrapped(f"{on_one_line(f.name)}: {f.verdict.words}")]
        for a in f.advice:
            lines += _wrapped(f"{a.text} [{a.source}]", "  - ")
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _row(f: GradientFlow) -> tuple[str, ...]:
    horizon, decay = f.horizon(), f.decay
    words: list[Any] = [
        on_one_line(f.name),
        f.steps,
        f"{f.losses.mean():.3f}",
        "-" if horizon is None else f"{'' if f.settles() else '≥ '}{horizon}",
        "-" if decay is None else f"{decay.beta:.3f} ± {decay.error:.3f}",
        _reach(f),
        f.verdict.kind,
    ]
    return tuple(map(str, words))


def _reach(f: GradientFlow) -> str:
    """Write the suggested reach, with what is known of its bias."""
    found = f.suggestion(every=f.window)
    if found.reach is None:
        return f"> {f.lags - 1}" if f.lags > 2 and tail(f) is not None else "-"
    known = "estimate" if found.measured is None else f"bias {found.measured:.2f}"
    return f"{found.reach} ({known})"
