"""Figures of weight matrices: how much of each loss an estimator passes to which step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bptt.errors import ConfigError, needs

with needs("plot"):
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, FuncNorm
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from bptt.credit import Plan

ACROSS = 4  # most panels in a row
SIZE = 2.7  # of a panel, in inches
FAINT, INK = "0.88", "0.35"  # lines between cells, and around the triangle
# Larger and smaller weights get the colours at the ends: a colour per decade needs few decades.
LEAST, MOST = 1e-3, 1e4


def draw_plans(plans: Mapping[str, Plan]) -> Figure:
    """Draw W[t, s] of each plan, side by side in the same colours.

    A row is the loss of step t, a column the step s to which it is credited. White is 0: nothing
    passes. The scale is logarithmic, and 1 has the same colour in every figure. If each sequence
    has its own weights, the first sequence's are drawn.

    Args:
        plans: the plans by title.

    Returns:
        A figure unknown to pyplot: it need not be closed, and no display is needed.

    Raises:
        ConfigError: there is no plan.

    >>> from bptt import Full, Truncated
    >>> figure = draw_plans({"full": Full().plan(20), "truncated": Truncated(5).plan(20)})
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['full', 'truncated']
    >>> figure.savefig("plans.png")  # doctest: +SKIP
    """
    if not plans:
        raise ConfigError("draw_plans needs at least one plan, got none")
    down = -(-len(plans) // ACROSS)
    across = -(-len(plans) // down)
    figure = Figure(figsize=(SIZE * across + 1.1, (SIZE + 0.55) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    shown = [first_matrix(plan) for plan in plans.values()]
    colours, norm = scale_of(shown)
    for axes, (title, plan), W in zip(panels, plans.items(), shown, strict=False):
        more = "" if plan.batch is None else f"\nthe first of {plan.batch} sequences"
        draw_matrix(axes, W, title + more, colours, norm)
    for number, axes in enumerate(panels):
        axes.set_visible(number < len(plans))
        if number % across == 0:
            axes.set_ylabel("loss at step t")
    draw_scale(figure, list(panels[: len(plans)]), shown, colours, norm)
    return figure


def first_matrix(plan: Plan) -> NDArray[np.float64]:
    """Return W, [T, T]; where each sequence has its own, that of the first."""
    return plan.matrix() if plan.batch is None else plan.matrix()[0]


def draw_matrix(
    axes: Axes, W: NDArray[np.float64], title: str, colours: Colormap, norm: FuncNorm
) -> None:
    """Draw one matrix, on and below the diagonal."""
    T = len(W)
    axes.imshow(
        np.ma.masked_equal(np.abs(W), 0),
        cmap=colours,
        norm=norm,
        interpolation="nearest",
        zorder=1,
    )
    edges = np.arange(T + 1) - 0.5
    if T <= 40:  # individual cells
        at, width = edges[1:-1], 1.0 if T <= 20 else 0.5
        axes.hlines(at, edges[0], at + 1, colors=FAINT, linewidth=width, zorder=2)
        axes.vlines(at, at, edges[-1], colors=FAINT, linewidth=width, zorder=2)
    # Around s ≤ t, as stairs; there is nothing above them.
    stairs = np.repeat(edges, 2)
    axes.plot(
        np.r_[edges[0], stairs[2:], edges[0], edges[0]],
        np.r_[stairs[:-1], edges[-1], edges[0]],
        color=INK,
        linewidth=0.8,
        solid_joinstyle="miter",
        clip_on=False,
        zorder=3,
    )
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("credited to step s")
    axes.set(xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(color=INK, length=3)
    axes.spines[:].set_visible(False)


def scale_of(shown: list[NDArray[np.float64]]) -> tuple[Colormap, FuncNorm]:
    """Make a scale with 1 in the middle and the extreme weights at the ends.

    Each half is logarithmic, and as wide as its weights need.
    """
    least, most = _range(shown)
    below, above = -np.log(least) or 1.0, np.log(most) or 1.0  # if a half is empty, any width

    def forth(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.log(np.clip(weight, 1 / np.exp(below), np.exp(above)))
        return x / np.where(x < 0, below, above)  # a mask stays

    def back(place: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.asarray(place)
        return np.exp(x * np.where(x < 0, below, above))

    norm = FuncNorm((forth, back), vmin=np.exp(-below), vmax=np.exp(above))
    return colormaps["viridis_r"].with_extremes(bad="white"), norm


def _range(shown: list[NDArray[np.float64]]) -> tuple[float, float]:
    """The smallest and the largest weight except 0; 1 is always included, for the diagonal."""
    sizes = np.abs(np.concatenate([W[W != 0] for W in shown]))
    return max(LEAST, sizes.min()), min(MOST, sizes.max())


def draw_scale(
    figure: FigureBase,
    panels: list[Axes],
    shown: list[NDArray[np.float64]],
    colours: Colormap,
    norm: FuncNorm,
) -> None:
    """Draw the scale, or a legend where all weights are 0 or 1."""
    least, most = _range(shown)
    if least == most:  # all weights are 0 or 1
        of_one = Patch(facecolor=colours(norm(1.0)), edgecolor=INK, linewidth=0.8)
        of_zero = Patch(facecolor="white", edgecolor=INK, linewidth=0.8)
        options = {"handlelength": 1, "handleheight": 1, "frameon": False}
        figure.legend([of_one, of_zero], ["1", "0"], loc="outside right center", **options)
        return
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(
        (least == LEAST, most == MOST), "neither"
    )
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=panels, aspect=25, pad=0.03, shrink=0.85, extend=extend
    )
    bar.ax.set_ylim(least, most)
    bar.outline.set_visible(False)
    signed = any((W < 0).any() for W in shown)
    bar.set_label(f"{'|W[t, s]|' if signed else 'W[t, s]'}; white: 0")
    bar.set_ticks(_ticks(least, most))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda weight, _: f"{weight:.3g}"))
    bar.minorticks_off()


def _ticks(least: float, most: float) -> list[float]:
    """1, and a few round numbers on either side of it."""
    ticks = [1.0]
    for end in (least, most):
        for steps in ([1, 2, 5], [1, 3], [1]):
            numbers = [n * 10.0**e for e in range(-4, 5) for n in steps]
            inside = [n for n in numbers if min(end, 1) <= n <= max(end, 1) and n != 1]
            if len(inside) <= 4:
                break
        far = [n for n in inside if abs(np.log(n)) > 0.1 * abs(np.log(end))]
        ticks += far or ([end] if end != 1 else [])
    return sorted(ticks)
