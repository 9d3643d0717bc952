"""The report as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bptt._src.audit.finding import many
from bptt._src.audit.record import Matrix

if TYPE_CHECKING:
    from bptt._src.audit.report import Audit

SHOWN = 24
"""Steps of a matrix that are written."""


def report_in_words(report: Audit) -> str:
    """Write what was audited, both matrices and the findings."""
    record = report.record
    updates = max((c.update for c in record.calls), default=0)
    head = f"{record.name}: {report.counts}, {many(updates, 'update')}"
    blocks = [head, beside(report.credit, report.memory, report.start)]
    blocks += [str(f) for f in report.findings]
    if not report.faults:
        blocks.append("no faults")
    return "\n\n".join(blocks)


def beside(credit: Matrix, memory: Matrix, start: int = 0) -> str:
    """Write two matrices side by side, a dot for each zero; of large ones the corner."""
    n = min(SHOWN, len(credit))
    left, right = _lines(credit[:n, :n], start), _lines(memory[:n, :n], start)
    width = max(len("credit"), *(len(line) for line in left))
    lines = [f"{'credit'.ljust(width)}   memory"]
    lines += [f"{a.ljust(width)}   {b}" for a, b in zip(left, right, strict=True)]
    if n < len(credit):
        lines.append(f"the first {n} of {len(credit)} steps")
    return "\n".join(lines)


def _lines(W: Matrix, start: int) -> list[str]:
    last = [max(t, int(np.flatnonzero(row)[-1]) if row.any() else 0) for t, row in enumerate(W)]
    cells = [["." if w == 0 else f"{w:.3g}" for w in row[: last[t] + 1]] for t, row in enumerate(W)]
    width = max(len(c) for row in cells for c in row)
    number = len(str(start + len(W) - 1))
    return [
        f"{start + t:>{number}} " + " ".join(c.rjust(width) for c in row)
        for t, row in enumerate(cells)
    ]
