"""The figure of an audit: credit and memory side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bptt.errors import needs

with needs("plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

from bptt._src.report.audit_data import calls, episode_starts, matrices_of
from bptt._src.report.matrices import INK, draw_matrix, draw_scale, scale_of
from bptt._src.report.style import COLOURS

if TYPE_CHECKING:
    from bptt import Audit

SIZE = 4.2  # of a matrix, in inches
FAULT, CALL, EPISODE = COLOURS[1], INK, COLOURS[4]
RING: dict[str, Any] = {
    **{"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"},
    **{"markeredgecolor": FAULT, "markeredgewidth": 2},
}


def draw_audit(report: Audit, title: str | None = None) -> Figure:
    """Draw credit and memory, means over the sequences, side by side in the same colours.

    A row is a step t, a column the step s that its loss is credited to, or that the state after it
    holds. Below the stairs of thin lines is what lies within a call. Left and below of the lines
    that begin on the diagonal is what lies in another episode; they are the fainter, the fewer
    sequences have an end there. Faults are ringed where each was seen first.

    Args:
        report: what :func:`bptt.audit` returned.
        title: what stands above; by default what was audited.

    Returns:
        A figure unknown to pyplot: it need not be closed, and no display is needed.
    """
    figure = Figure(figsize=(2 * SIZE + 1.2, SIZE + 1.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [report.credit, report.memory]
    colours, norm = scale_of(shown)
    draw_matrix(left, report.credit, "credit", colours, norm)
    draw_matrix(right, report.memory, "memory", colours, norm)
    left.set(ylabel="loss at step t")
    right.set(xlabel="holds step s", ylabel="state after step t")
    for axes, name in ((left, "credit"), (right, "memory")):
        _number(axes, report.start)
        _draw_calls(axes, report)
        _draw_ends(axes, report)
        for fault in _placed(report):
            if name in matrices_of(fault.kind):
                place = fault.s - report.start, fault.t - report.start
                axes.plot(*place, gid=fault.kind, zorder=6, clip_on=False, **RING)
    draw_scale(figure, [left, right], shown, colours, norm)
    _draw_legend(figure, report)
    heading = f"{report.record.name}: {report.counts}" if title is None else title
    figure.suptitle(heading, x=0.01, ha="left", fontsize="medium", parse_math=False)
    return figure


def _number(axes: Axes, start: int) -> None:
    """Call the first step what the report calls it."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda place, _: f"{place + start:g}"))


def _draw_calls(axes: Axes, report: Audit) -> None:
    for a, b in {place for those in calls(report) for place in those}:
        edges = np.array([a, b]) - 0.5
        axes.plot([edges[0], *edges], [*edges, edges[1]], color=CALL, linewidth=0.8, zorder=4)


def _draw_ends(axes: Axes, report: Audit) -> None:
    T, Q = report.steps, len(report.sequences)
    starts = [episode_starts(report, q) for q in range(Q)]
    for t in {t for those in starts for t in those}:
        share = sum(t in those for those in starts) / Q
        axes.plot(
            [-0.5, t - 0.5, t - 0.5],
            [t - 0.5, t - 0.5, T - 0.5],
            color=EPISODE,
            linewidth=1.8,
            alpha=0.25 + 0.75 * share,
            zorder=5,
        )


def _placed(report: Audit) -> list[Any]:
    """The faults that have a place in a matrix."""
    return [f for f in report.faults if f.t is not None and f.s is not None]


def _draw_legend(figure: Figure, report: Audit) -> None:
    """Name the lines and rings that there are."""
    found: list[Line2D] = []
    if any(calls(report)):
        found.append(Line2D([], [], color=CALL, linewidth=0.8, label="a call"))
    if report.episodes is not None:
        found.append(Line2D([], [], color=EPISODE, linewidth=1.8, label="an episode begins"))
    if kinds := dict.fromkeys(f.kind for f in _placed(report)):
        found.append(Line2D([], [], label=f"fault: {', '.join(kinds)}", **RING))
    if found:
        figure.legend(handles=found, loc="outside lower left", ncols=3, frameon=False)
