"""What the units do: how many are saturated, and how many are dead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bptt._src.flow.trajectory import Trajectory
from bptt.cells import Blocks, Cell, State

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
    of its supremum, so that next to no gradient passes (of ReLUs, those that are off); of a cell
    with gates, the gates' values below 0.05 or above 0.95, which is how they keep something. None
    where neither is known."""
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
        return Activity(saturated, _dead(trajectory, None), ends)
    slope = _slope(trajectory)
    if slope is not None:
        saturated = _share(slope < SHARE)
    return Activity(saturated, _dead(trajectory, slope), None)


def _slope(trajectory: Trajectory) -> Tensor | None:
    """Return φ' of each value, [T, B, H], as a share of sup φ'; None where there is no φ."""
    cell = trajectory.cell
    if cell is None or cell.phi is None:
        return None
    if cell.phi.derivative is not None and not trajectory.is_projected:
        # From h itself: a kink is on the side on which the run had it.
        return cell.phi.derivative(trajectory.outputs).abs() / cell.phi.slope
    (a, *of_x), of_h, state, units = _blocks(cell, trajectory)
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        total = cell.equations((a, *of_x), of_h, state, units)[0].sum()
        (slope,) = torch.autograd.grad(total, a)
    return slope.abs() / cell.phi.slope


def _gates(trajectory: Trajectory) -> dict[str, Tensor]:
    """Return the values of each gate, [T, B, H], by name."""
    cell = trajectory.cell
    if cell is None or cell.gates is None:
        return {}
    of_x, of_h, state, units = _blocks(cell, trajectory)
    with torch.no_grad():
        return cell.gates(of_x, of_h, state, units)


def _blocks(cell: Cell, trajectory: Trajectory) -> tuple[Blocks, Blocks, State, Blocks]:
    """What the equations were given at all steps, each [T, B, ...]."""
    w, states = trajectory.weights, trajectory.states_before
    assert w is not None
    with torch.no_grad():
        of_x, of_h, units = cell.blocks(torch.stack(trajectory.inputs), states[0], w)
    return of_x, of_h, states, units


def _ends(values: Tensor) -> tuple[float, float]:
    return _share(values < ENDS[0]), _share(values > ENDS[1])


def _dead(trajectory: Trajectory, slope: Tensor | None) -> float:
    h = trajectory.outputs.flatten(0, 1)
    if len(h) < 2:
        return 0.0  # nothing can be said from a single value
    dead = h.amax(0) - h.amin(0) <= CONSTANT
    cell = trajectory.cell
    if slope is not None and cell is not None and cell.phi is not None and cell.phi.rectifies:
        off = (slope == 0).flatten(0, 1).all(0)
        dead = dead | off if len(dead) == len(off) else off
    return _share(dead)


def _share(true: Tensor) -> float:
    return float(true.double().mean())
