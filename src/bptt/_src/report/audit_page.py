"""The page of an audit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bptt._src.atomic import write_whole
from bptt._src.report.audit_data import packed
from bptt._src.report.page_file import whole_page

if TYPE_CHECKING:
    from bptt import Audit

SCRIPTS = (
    "numbers",
    "words",
    "scale",
    "redraw",
    "parts",
    "audit_view",
    "audit_map",
    "audit_findings",
    "audit",
)


def write(path: str | os.PathLike[str], report: Audit, title: str | None = None) -> None:
    """Write the page: credit, memory and the findings of an audit.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        report: what :func:`bptt.audit` returned.
        title: what was audited; by default the module's name.

    Raises:
        OSError: it could not be written; the previous file is still there.
    """
    write_whole(Path(path), page(report, title))


def page(report: Audit, title: str | None = None) -> str:
    """Return the page as text; see :func:`write`."""
    data = packed(report)
    name = data["module"] if title is None else title
    return whole_page("Audit", name, ["audit"], SCRIPTS, {**data, "title": name})
