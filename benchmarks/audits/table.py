"""What every script here ends with: the report of an audit, and a row of the table."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

HEAD = ("library", "what was run", "what it says", "the credit is", "faults", "facts")
MARK = "\x1erow "
"""What the lines for ``all.py`` begin with."""


def told(
    library: str,
    what: str,
    says: str,
    report: Any,
    credits: dict[str, Any],
    padding: int | None = None,
) -> None:
    """Print a report, and its row.

    Args:
        library: the name of the distribution, whose version is looked up.
        what: what was run.
        says: what its documentation says of the credit.
        report: what ``bptt.audit`` returned.
        credits: credits to compare with, by their names, or functions of the report: the first
            that fits goes into the row.
        padding: a sequence that is none, whose findings stay out of the row.
    """
    print(f"\n=== {library} {version(library)}: {what}\n")
    print(report)
    seen = "no loss" if not report.has_loss.any() else "none of those expected"
    for name, credit in credits.items():
        compared = credit(report) if callable(credit) else report.is_(credit)
        print(f"is it {name}? {compared}")
        if compared:
            seen = name
            break
    kinds = [_kinds(found, padding) for found in (report.faults, report.facts)]
    row(library, what, says, seen, *kinds)


def row(library: str, *rest: str) -> None:
    """Print a row of the table."""
    cells = (f"{library} {version(library)}", *rest)
    if "--rows" in sys.argv:
        print(MARK + "\t".join(cells))
    else:
        print("| " + " | ".join(HEAD) + " |")
        print("| " + " | ".join(cells) + " |")


def _kinds(findings: Any, padding: int | None) -> str:
    found = (f.kind for f in findings if f.sequence is None or f.sequence != padding)
    return ", ".join(dict.fromkeys(k for k in found if k != "reach")) or "none"
