"""The figure of a comparison: learning curves, and below them the reach of each credit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bptt.errors import needs

with needs("plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bptt._src.comparison.table import heading
from bptt._src.numbers import number
from bptt._src.report.matrices import ACROSS, SIZE, draw_matrix, draw_scale, first_matrix, scale_of
from bptt._src.report.style import COLOURS, GREY, LINES

if TYPE_CHECKING:
    from bptt._src.comparison.result import Comparison, CreditResult

WIDTH, CURVES = 11.0, 4.6  # inches


def draw_comparison(found: Comparison) -> Figure:
    """Draw the learning curves of a comparison, and the matrices of its credits.

    A line is the smoothed mean over the seeds, the band around it their range; a run that was
    solved and ended keeps its last loss. Dots mark where runs reached the target.

    Returns:
        A figure unknown to pyplot.
    """
    down = -(-len(found.credits) // ACROSS)
    across = -(-len(found.credits) // down)
    below = (SIZE + 0.6) * down
    figure = Figure(figsize=(WIDTH, CURVES + below), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(CURVES, below), hspace=0.03)
    above, under = parts.ravel()
    _draw_curves(above, found)
    _draw_matrices(under, found, down, across)
    return figure


def _draw_curves(part: SubFigure, found: Comparison) -> None:
    axes = part.subplots()
    for place, result in enumerate(found.credits):
        # Dots that overlap are drawn as rings.
        dot = 5 + 2 * (len(found.credits) - 1 - place) / max(1, len(found.credits) - 1)
        colour, line = COLOURS[place % len(COLOURS)], LINES[place % len(LINES)]
        _draw_curve(axes, found, result, colour, line, dot)
    last = max((t.updates[-1] for r in found.credits for t in r.trials if t.updates), default=1)
    what = "a unigram model" if found.is_text else "without memory"
    for level, said, where in ((found.baseline, what, "bottom"), (found.target, "solved", "top")):
        value = found.shown(level)
        axes.axhline(value, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"{said}, {number(value)}",
            (1, value),
            xytext=(-4, 2 if where == "bottom" else -2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va=where,
            color=GREY,
            fontsize="small",
        )
    axes.set(xlim=(0, last), xlabel="updates", yscale="log")
    seen = "held-out perplexity" if found.is_text else "loss, smoothed"
    axes.set_ylabel(f"{seen}; mean and range of {found.seeds} seed{'s' * (found.seeds > 1)}")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, found.shown(found.target) / 1.35), high)
    _label_logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(heading(found), loc="left", fontsize="medium", pad=12)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)


def _draw_curve(
    axes: Axes, found: Comparison, result: CreditResult, colour: str, line: Any, dot: float
) -> None:
    figures = found.figures(result)
    label = f"{result.spelling}\nsolved {figures.solved} of {figures.runs}"
    if figures.diverged:
        label += f", diverged {figures.diverged}"
    trials = [t for t in result.trials if t.losses]
    if not trials:
        axes.plot([], [], color=colour, linestyle=line, label=label)
        return
    x = max((t.updates for t in trials), key=len)
    curves = [_to_length(t.smoothed(found.window), len(x)) for t in trials]
    y = np.vectorize(found.shown)(np.array(curves))
    axes.plot(x, y.mean(0), color=colour, linestyle=line, linewidth=1.8, label=label, zorder=3)
    axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.13, linewidth=0, zorder=2)
    for trial in trials:
        place = trial.reached(found.target, found.window)
        if place is not None:
            axes.plot(
                trial.updates[place],
                found.shown(found.target),
                "o",
                color=colour,
                markersize=dot,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=4,
            )


def _to_length(curve: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.concatenate([curve, np.full(length - len(curve), curve[-1])])


def _label_logarithmic(axes: Axes) -> None:
    """Label the axis with enough readable numbers."""
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 4 else (1.0, 3.0) if decades > 2.2 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=50))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_matrices(part: SubFigure, found: Comparison, down: int, across: int) -> None:
    """Draw how much of each loss passes to which step; for a random plan, one example."""
    panels = part.subplots(down, across, squeeze=False).ravel()
    shown = [first_matrix(r.plans.example) for r in found.credits]
    colours, norm = scale_of(shown)
    for axes, result, W in zip(panels, found.credits, shown, strict=False):
        title = f"{result.spelling}, one draw" if result.plans.drawn else result.spelling
        draw_matrix(axes, W, title, colours, norm)
    for count, axes in enumerate(panels):
        axes.set_visible(count < len(shown))
        if count % across == 0:
            axes.set_ylabel("loss at step t")
    draw_scale(part, list(panels[: len(shown)]), shown, colours, norm)
    part.suptitle(
        "What of each loss passes to which step, at the end", x=0.01, ha="left", fontsize="medium"
    )
