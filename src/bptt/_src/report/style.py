"""Colours and lines of all figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, for the colour-blind too; some are dashed, for curves that overlap.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = ("-", "-", "-", (0, (5, 2)), "-", (0, (5, 2)), (0, (1, 1.5)))
GREY = "0.4"


def as_picture(figure: Figure, kind: str, **options: Any) -> bytes:
    """Write a figure as the content of a file.

    Args:
        figure: the figure.
        kind: ``"png"``, ``"svg"`` or ``"pdf"``.
        options: those of matplotlib's ``savefig``.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
