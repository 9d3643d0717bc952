"""Numbers in tables."""

from __future__ import annotations

import math

ABSENT = "-"


def number(value: float | None) -> str:
    """Format a number with three digits, without an exponent if possible."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    if not 0.001 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


def size(count: int) -> str:
    """Format a number of bytes, in the largest unit that it fills."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count} B"
