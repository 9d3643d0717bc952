"""What the units do: how many are saturated, and how many are dead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from bptt._src.flow.trajectory import Trajectory

SHARE = 0.1
"""A unit is saturated where φ' is below this share of its supremum."""

ENDS = (0.05, 0.95)
"""A gate is at its end below the one or above the other."""

CONSTANT = 1e-6
"""A unit whose state moves by no more than this never changes."""


@dataclass(frozen=True)
class Activity:
    """The units of one layer over a text: shares of 0 to 1."""

    saturated: float | None
    """Of the values of all units, steps and sequences: of an RNN, those where φ' is below a tenth
    of its supremum, so that next to no gradient passes (of ReLUs, those that are off); of a GRU
    or LSTM, the gates' values below 0.05 or above 0.95, which is how they keep something. None
    where nothing is known of the module."""
    dead: float
    """Of the units: ReLUs that are never on, others that never change."""
    gates: dict[str, tuple[float, float]] | None
    """For each gate the share of values below 0.05, and above 0.95; None where there is none."""


def activity(trajectory: Trajectory) -> Activity:
    """Look at the units of a layer along a sequence.

    Args:
        trajectory: the layer's way through it.

    >>> import torch, bptt
    >>> from bptt._src.flow.trajectory import follow
    >>> rnn = bptt.RNN(2, 100)
    >>> activity(follow(rnn, torch.randn(20, 3, 2))[0]).saturated < 0.1
    True
    >>> activity(follow(rnn, 1000 * torch.randn(20, 3, 2))[0]).saturated > 0.9
    True
    """
    gates, saturated = _gates(trajectory), None
    if gates:
        ends = {name: _ends(values) for name, values in gates.items()}
        saturated = sum(low + high for low, high in ends.values()) / len(ends)
        return Activity(saturated, _dead(trajectory), ends)
    slope = _slope(trajectory)
    if slope is not None:
        saturated = _share(slope < SHARE)
    return Activity(saturated, _dead(trajectory), None)


def _slope(trajectory: Trajectory) -> Tensor | None:
    """Return φ' of each value, as a share of sup φ'; None where there is no φ."""
    h, mode = trajectory.outputs, None if trajectory.cell is None else trajectory.cell.name
    if mode == "RNN_TANH":
        return 1 - h * h
    if mode == "RNN_SIGMOID":
        return 4 * h * (1 - h)
    return (h > 0).to(h.dtype) if mode == "RNN_RELU" else None


def _gates(trajectory: Trajectory) -> dict[str, Tensor]:
    """Return the values of each gate, [T, B, H], by name."""
    cell, w = trajectory.cell, trajectory.weights
    if cell is None or w is None or cell.gates_h == 1:
        return {}
    with torch.no_grad():
        h = trajectory.before[..., : w.hh.shape[1]]
        x = torch.stack(trajectory.inputs)
        parts = (linear(x, w.ih, w.b_ih) + linear(h, w.hh, w.b_hh)).chunk(cell.gates_h, dim=-1)
    names = {
        "GRU": ("reset", "update"),  # and the candidate, n, which is no gate
        "LSTM": ("input", "forget", "", "output"),
    }[cell.name]
    return {name: a.sigmoid() for name, a in zip(names, parts, strict=False) if name}


def _ends(values: Tensor) -> tuple[float, float]:
    return _share(values < ENDS[0]), _share(values > ENDS[1])


def _dead(trajectory: Trajectory) -> float:
    h = trajectory.outputs.flatten(0, 1)
    if len(h) < 2:
        return 0.0  # nothing can be said from a single value
    dead = h.amax(0) - h.amin(0) <= CONSTANT
    if trajectory.cell is not None and trajectory.cell.name == "RNN_RELU":
        dead = dead | (h <= 0).all(0)
    return _share(dead)


def _share(true: Tensor) -> float:
    return float(true.double().mean())
