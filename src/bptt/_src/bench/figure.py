"""The figure of ``bptt bench``: how much of the processor each training step uses."""

from __future__ import annotations

from collections.abc import Sequence

from bptt._src.bench.result import JAX, OURS, TORCH, Bench, Row
from bptt._src.numbers import number
from bptt.errors import BpttError, needs

with needs("plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


COLOURS = {OURS: "#0072B2", TORCH: "#D55E00", JAX: "#999999"}  # Okabe and Ito's
BAR = 0.27  # relative to the space between two rows


def draw_bench(found: Bench) -> Figure:
    """Draw the GFLOP/s of every training step, with the milliseconds beside each bar.

    Args:
        found: the result of a bench.

    Returns:
        A figure unknown to pyplot: a panel for each cell, one for the language models, and lines at
        the processor's peak and its best matrix product.

    Raises:
        BpttError: neither a layer nor a language model was measured.
    """
    panels = _panels(found.rows)
    if not panels:
        raise BpttError("there is nothing to draw: measure the parts kernels or model")
    most = max(len(rows) for rows in panels.values())
    down = -(-len(panels) // 2)
    across = min(2, len(panels))
    size = (5.6 * across, (0.75 * most + 1.1) * down + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for place, (title, rows) in zip(axes, panels.items(), strict=False):
        _draw_panel(place, title, rows, found)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    names = [
        n for n in COLOURS if any(n in row.seconds for rows in panels.values() for row in rows)
    ]
    patches = [Patch(color=COLOURS[n], label=n) for n in names]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False)
    c = found.conditions
    figure.suptitle(
        f"{c['processor']}; bptt {c['bptt']}: {c['kernels'].partition(':')[0]}; torch {c['torch']}"
        + (f", JAX {c['jax']}" if c["jax"] else ""),
        x=0.01,
        ha="left",
        fontsize="small",
        color="0.3",
    )
    return figure


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.section == "kernels":
            panels.setdefault(f"{row.name}, T/B/I/H", []).append(row)
        elif row.section == "model":
            panels.setdefault("Language model, V/H/B/T", []).append(row)
    return panels


def _draw_panel(axes: Axes, title: str, rows: Sequence[Row], found: Bench) -> None:
    names = [n for n in COLOURS if any(n in row.seconds for row in rows)]
    for place, name in enumerate(names):
        offset = (place - (len(names) - 1) / 2) * BAR
        for count, row in enumerate(rows):
            gflops = row.gflops(name)
            if gflops is None:
                continue
            axes.barh(count + offset, gflops, 0.9 * BAR, color=COLOURS[name])
            axes.annotate(
                f"{number(row.milliseconds(name))} ms",
                (gflops, count + offset),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize="x-small",
                color="0.25",
            )
    is_model = rows[0].section == "model"
    labels = [f"{r.name}\n{r.shape}" if is_model else r.shape for r in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel("GFLOP/s")
    axes.xaxis.set_tick_params(labelbottom=True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_limits(axes, found)


def _draw_limits(axes: Axes, found: Bench) -> None:
    if found.limits is None:
        return
    product = found.limits.products[found.limits.best]
    limits = [(product, "large product")]
    if found.limits.peak is not None:
        limits.append((found.limits.peak, "peak"))
    # The lowest line's name is on its left, so that the names do not overlap.
    for (value, said), side in zip(sorted(limits), ("right", "left"), strict=False):
        axes.axvline(value, color="0.5", linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
        axes.annotate(
            said,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3 if side == "left" else -3, 0),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize="x-small",
            color="0.4",
        )
