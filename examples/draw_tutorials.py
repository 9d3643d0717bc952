"""Draw what the tutorials on backpropagation through time say in words.

python examples/draw_tutorials.py [DIRECTORY]

Writes terms.svg, powers.svg and pieces.svg: the terms of the gradient and what truncation keeps of
them, powers of a matrix and its eigenvectors, and where the gradient is cut on a line of text.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import bptt
from bptt.textbook import Model

INK, RED, BLUE = "#000000", "#D55E00", "#0072B2"


def terms() -> Figure:
    """Draw ‖C[t, i]‖: all, those of bptt_truncate=4, those of a detach every five words."""
    ids = np.random.default_rng(0).integers(0, 50, 21)
    x, y = ids[:-1], ids[1:]
    model = Model(50, 40, bptt_truncate=None, seed=0)
    model.W = np.linalg.qr(model.W)[0]
    full = model.terms(x, y)
    model.bptt_truncate = 4
    shown = {
        "all: two loops, or one": full,
        "bptt_truncate=4": model.terms(x, y),
        "detach every 5 words": full * bptt.Truncated(5).plan(20).matrix(),
    }
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (title, norms) in zip(panels, shown.items(), strict=True):
        image = axes.imshow(
            np.ma.masked_equal(norms, 0),
            norm=LogNorm(full[full > 0].min(), full.max()),
            cmap="viridis_r",
        )
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("W used at step i")
    panels[0].set_ylabel("loss at step t")
    figure.colorbar(image, ax=panels, label="‖C[t, i]‖", shrink=0.8)
    return figure


def powers() -> Figure:
    """Draw what Wᵀ, applied n times, makes of the unit circle and of one vector on it."""
    angle, one = np.linspace(0, 2 * np.pi, 73), np.array([0.95, -0.31])
    basis = np.array([[1.0, -0.55], [0.45, 1.0]])
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    cases = {
        "eigenvalues 1.1 and 0.6": basis @ np.diag([1.1, 0.6]) @ np.linalg.inv(basis),
        "eigenvalues 0.95 exp(±0.5 i)": 0.95 * turn,
    }
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    for axes, (title, A) in zip(figure.subplots(1, 2), cases.items(), strict=True):
        values, vectors = np.linalg.eig(A)
        for v in vectors.T[np.abs(values.imag) < 1e-9].real:
            axes.axline((0, 0), v, color="0.4", linewidth=0.8, linestyle=":")
        for n in (0, 1, 2, 4, 8):
            shade = 0.25 + 0.75 * (8 - n) / 8
            circle = np.linalg.matrix_power(A, n) @ [np.cos(angle), np.sin(angle)]
            axes.plot(*circle, color=BLUE, alpha=shade, linewidth=1)
        path = np.array([np.linalg.matrix_power(A, n) @ one for n in range(9)])
        axes.plot(*path.T, color=RED, marker="o", markersize=3, linewidth=1)
        for n in (0, 1, 2, 4, 8):
            axes.annotate(f"n = {n}", path[n], (4, 3), textcoords="offset points", fontsize=7)
        axes.set(title=title, aspect="equal", xlim=(-2, 2), ylim=(-1.6, 1.6))
    return figure


def pieces() -> Figure:
    """Draw on a line of text where each credit cuts the gradient, and by what it multiplies it."""
    text = "every word has a loss and each loss goes back until something cuts it off"
    words = text.split()
    generator = torch.Generator().manual_seed(1)
    plans = {
        "full": bptt.Full().plan(len(words)),
        "truncated:5": bptt.Truncated(5).plan(len(words)),
        "randomized:5": bptt.Randomized(5).plan(len(words), generator=generator),
    }
    start = np.concatenate([[0], np.cumsum([len(word) + 2.2 for word in words])])
    figure = Figure(figsize=(9.6, 2.1), layout="constrained")
    axes = figure.subplots()
    for row, (name, plan) in enumerate(plans.items()):
        carry = np.asarray(plan.carry).ravel()
        edges = [0, *(j for j in range(1, len(words)) if carry[j] == 0), len(words)]
        axes.text(-1.5, -2 * row, name, ha="right", va="center", fontsize=8)
        for first, end in pairwise(edges):
            left, width = start[first] + 0.3, start[end] - start[first] - 0.6
            axes.add_patch(FancyBboxPatch(
                (left, -2 * row - 0.5), width, 1, boxstyle="round,pad=0,rounding_size=0.4",
                facecolor="#E8F1F8", edgecolor=BLUE,
            ))  # fmt: skip
        for j, word in enumerate(words):
            middle = (start[j] + start[j + 1]) / 2
            axes.text(middle, -2 * row, word, ha="center", va="center", fontsize=8)
            if j and carry[j] not in (0, 1):
                factor = f"{carry[j]:.2f}"
                axes.text(start[j], -2 * row + 0.8, factor, ha="center", fontsize=6, color=RED)
    axes.set(xlim=(-14, start[-1]), ylim=(-5, 1.2))
    axes.axis("off")
    return figure


directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bptt"}):
    for draw in (terms, powers, pieces):
        file = directory / f"{draw.__name__}.svg"
        draw().savefig(file, metadata={"Date": None})
        print(file)
