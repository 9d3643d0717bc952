"""The figure of a gradient flow: which loss reaches which step, and the same by lag."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt.errors import ConfigError, needs

with needs("plot"):
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from bptt._src.report.flow_data import Flow, as_dict
from bptt._src.report.style import COLOURS, GREY, LINES

WIDTH, CURVES = 11.0, 3.9  # inches
ACROSS = 5  # most heat maps in a row
DECADES = 4  # colour range of a matrix, below its largest entry
NOTHING = "0.93"
FEW = 6  # most flows with two lines each in the legend
BELOW = 8  # decades below the largest mean to which the curves are drawn


class Panel(NamedTuple):
    """One heat map: its flow, its title, and the norms [N, T], NaN where there is none."""

    flow: Mapping[str, Any]
    title: str
    norms: NDArray[np.float64]


def draw_flow(*flows: Flow) -> Figure:
    """Draw how far the gradient reaches: a heat map, and the norms by lag.

    A row of a heat map is the loss of step t, a column the step s whose state it reaches; colours
    are logarithmic, relative to the matrix's largest entry. For one flow the top layer's states are
    drawn, for several the top hidden state of each. Below are the curves by lag: the mean, the band
    from the 10 % to the 90 % quantile, the fitted decay, the bound β_W·β_h for a single layer that
    has one, and the horizon. The title is the verdict.

    Args:
        flows: results of :func:`bptt.gradient_flow`, or the dicts of ``to_dict()``.

    Returns:
        A figure unknown to pyplot: it need not be closed, and no display is needed.

    Raises:
        ConfigError: there is none, or one of them is something else.
    """
    if not flows:
        raise ConfigError("draw_flow needs at least one gradient flow, got none")
    found = [as_dict(flow) for flow in flows]
    panels = _panels(found)
    down = -(-len(panels) // ACROSS)
    maps = down * min(3.6, 0.6 + WIDTH / -(-len(panels) // down))
    curves = max(CURVES, 0.8 + 0.2 * len(found))
    figure = Figure(figsize=(WIDTH, maps + curves), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(maps, curves))
    above, below = parts.ravel()
    _draw_panels(above, panels, down)
    _draw_curves(below.subplots(), found)
    figure.suptitle(_heading(found), x=0.01, ha="left", fontsize="medium", parse_math=False)
    return figure


def _heading(flows: list[dict[str, Any]]) -> str:
    if len(flows) == 1:
        return textwrap.fill(f"{flows[0]['name']}: {flows[0]['verdict']['words']}", 120)
    names: dict[str, list[str]] = {}
    for flow in flows:
        names.setdefault(flow["verdict"]["kind"], []).append(flow["name"])
    said = [textwrap.fill(f"{kind}: {'; '.join(those)}", 120) for kind, those in names.items()]
    return "\n".join(said)


def _panels(flows: list[dict[str, Any]]) -> list[Panel]:
    panels = []
    for flow in flows:
        top = max(state["layer"] for state in flow["states"])
        states = [state for state in flow["states"] if state["layer"] == top]
        for state in states if len(flows) == 1 else states[:1]:
            title = f"{state['name']} state" if len(flows) == 1 else flow["name"]
            panels.append(Panel(flow, title, np.array(state["norms"], np.float64)))
    return panels


def _draw_panels(part: SubFigure, panels: list[Panel], down: int) -> None:
    across = -(-len(panels) // down)
    places = part.subplots(down, across, squeeze=False).ravel()
    norm = LogNorm(10.0**-DECADES, 1)
    colours = colormaps["viridis_r"].with_extremes(bad="white", under=NOTHING)
    for count, axes in enumerate(places):
        axes.set_visible(count < len(panels))
        if count < len(panels):
            _draw_norms(axes, panels[count], colours, norm)
        if count % across == 0:
            axes.set_ylabel("loss at step t")
    shown = list(places[: len(panels)])
    bar = part.colorbar(ScalarMappable(norm, colours), ax=shown, pad=0.02, extend="min")
    bar.set_label("of the matrix's largest")
    bar.outline.set_visible(False)


def _draw_norms(axes: Axes, panel: Panel, colours: Colormap, norm: LogNorm) -> None:
    flow, norms = panel.flow, panel.norms
    N, T = norms.shape
    known = np.isfinite(norms) & (np.arange(T) <= np.array(flow["times"])[:, None])
    largest = norms[known].max() if known.any() else 0
    share = np.where(known, norms, 0) / (largest or 1)
    axes.imshow(
        np.ma.array(np.fmax(share, 1e-300), mask=~known),
        cmap=colours,
        norm=norm,
        interpolation="nearest",
        aspect="auto" if N < T else "equal",
    )
    axes.set_title(panel.title, fontsize="medium", parse_math=False)
    axes.set_xlabel("reaches step s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda row, _: _time(flow, row))


def _time(flow: Mapping[str, Any], row: float) -> str:
    """The step of the loss that a row shows."""
    times = flow["times"]
    return str(times[int(row)]) if row == int(row) and 0 <= row < len(times) else ""


def _draw_curves(axes: Axes, flows: list[dict[str, Any]]) -> None:
    between = "\n" if len(flows) <= FEW else ": "
    for place, flow in enumerate(flows):
        again = place // len(COLOURS)  # how often the colours have been used before
        line = (0, (3, again)) if again else LINES[place]
        _draw_curve(axes, flow, COLOURS[place % len(COLOURS)], line, between)
        if len(flows) == 1:
            _draw_laws(axes, flow)
    means = np.array([m for flow in flows for m in flow["by_lag"]["mean"] if m], np.float64)
    means = means[means > 0]
    axes.set(xlim=(0, _last(flows, means)), xlabel="lag t - s, in steps")
    axes.set_ylabel("norm, mean and 10 % to 90 %")
    if means.size:
        least = max(means.min(), means.max() * 10.0**-BELOW)
        axes.set_yscale("log")
        axes.set_ylim(least / 2, means.max() * 3)
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        size = "medium" if len(flows) <= FEW else "small"
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=size)
        legend.set_frame_on(False)


def _last(flows: list[dict[str, Any]], means: NDArray[np.float64]) -> int:
    """The last lag of the plot: slightly beyond where all curves have left it."""
    least = means.max(initial=0) * 10.0**-BELOW
    by_lag = [flow["by_lag"] for flow in flows]
    pairs = [pair for b in by_lag for pair in zip(b["lag"], b["mean"], strict=True)]
    seen = max([lag for lag, mean in pairs if mean and mean >= least], default=0)
    return max(1, min(math.ceil(1.1 * seen) + 2, max([lag for lag, _ in pairs], default=0)))


def _draw_curve(axes: Axes, flow: Mapping[str, Any], colour: str, line: Any, between: str) -> None:
    lag, mean, low, high = _by_lag(flow)
    label = f"{flow['name']}{between}{_measures(flow)}".replace("$", r"\$")
    axes.plot(lag, mean, color=colour, linestyle=line, linewidth=1.8, label=label, zorder=3)
    axes.fill_between(lag, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def _by_lag(flow: Mapping[str, Any]) -> tuple[NDArray[np.float64], ...]:
    """Lag, mean, low and high; NaN where a logarithm has nothing to show, the band to the end."""
    lag, mean, low, high = (
        np.array(flow["by_lag"][key], np.float64) for key in ("lag", "mean", "low", "high")
    )
    tiny = np.finfo(np.float64).tiny
    return lag, np.where(mean > 0, mean, np.nan), np.fmax(low, tiny), np.fmax(high, tiny)


def _measures(flow: Mapping[str, Any]) -> str:
    horizon, decay = flow.get("horizon"), flow.get("decay")
    said = []
    if horizon and horizon["lag"] is not None:
        said.append(f"horizon {'' if horizon['reached'] else '≥ '}{horizon['lag']}")
    if decay:
        said.append(f"β {decay['beta']:.3g}")
    return ", ".join(said) or "no decay fitted"


def _draw_laws(axes: Axes, flow: Mapping[str, Any]) -> None:
    """The fit, the bound and the horizon of one flow."""
    lag, mean, _, _ = _by_lag(flow)
    decay, horizon, layers = (flow.get(key) for key in ("decay", "horizon", "dynamics"))
    if decay and decay["beta"]:
        inside = (lag >= decay["first"]) & (lag <= decay["last"]) & np.isfinite(mean)
        if inside.any():
            level = np.mean(np.log(mean[inside]) - lag[inside] * np.log(decay["beta"]))
            k = np.array([decay["first"], decay["last"]])
            y = np.exp(level) * decay["beta"] ** k
            axes.plot(k, y, color=COLOURS[1], linestyle=(0, (5, 2)), label="fit, β a step")
    bound = layers[0].get("bound") if layers and len(layers) == 1 else None
    known = np.flatnonzero(np.isfinite(mean))
    if bound and known.size:
        start = known[0]
        with np.errstate(over="ignore", under="ignore"):
            y = mean[start] * bound ** (lag[start:] - lag[start])
        y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
        axes.plot(lag[start:], y, color=GREY, linestyle=(0, (1, 2)), label="bound, (β_W β_h)ᵏ")
    if horizon and horizon["lag"] is not None:
        axes.axvline(horizon["lag"], color=GREY, linewidth=0.9, zorder=1)
        end = horizon["lag"] > lag.max() * 0.8
        axes.annotate(
            f"horizon {horizon['lag']}" + ("" if horizon["reached"] else " or more"),
            (horizon["lag"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if end else 4, -3),
            textcoords="offset points",
            ha="right" if end else "left",
            va="top",
            color=GREY,
            fontsize="small",
        )
