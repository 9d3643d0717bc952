"""Zoneout: units that keep their state of the step before, at random.

    s_t = m_t ⊙ s_{t-1} + (1 - m_t) ⊙ s'_t                in training, m_t ~ Bernoulli(p)
    s_t = p s_{t-1} + (1 - p) s'_t                        in evaluation: the mean over m_t

for each tensor s of a cell's state, where s' is what the cell's equations make of the states
before. D. Krueger, T. Maharaj, J. Kramár, M. Pezeshki, N. Ballas, N. R. Ke, A. Goyal, Y. Bengio,
A. Courville and C. Pal, "Zoneout: regularizing RNNs by randomly preserving hidden activations",
ICLR 2017, arXiv:1606.01305.

Tensors that belong together (:attr:`bptt.Cell.tied`) have one mask, and in evaluation a
consistent mean (:attr:`bptt.Cell.mean`): of a rate r = φ(x), x is averaged and r is φ of that.

Both are elementwise, so a cell with zoneout is a cell. Its masks stand in x, beside the blocks that
are made of x_t, so that both passes over a sequence are those of any cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from bptt.cells.cell import Cell
from bptt.cells.weights import Blocks, State

Rates = tuple[float, ...]
"""For each tensor of the state, the probability that a unit keeps it; () where none is kept."""


def rates_of(called: str, cell: Cell, zoneout: float | Sequence[float], projects: bool) -> Rates:
    """Return the rate of each tensor of a cell's state.

    Args:
        called: what messages name.
        cell: the cell.
        zoneout: a number, or one for each tensor of the state.
        projects: whether h is projected, so that no unit could keep it.

    Raises:
        ValueError: a rate is below 0 or not below 1, there are not as many as tensors in the state,
            those of tensors that belong together differ, or that of a projected h is not 0.
    """
    given = tuple(zoneout) if isinstance(zoneout, Sequence) else (zoneout,) * cell.states
    if len(given) != cell.states or not all(
        isinstance(p, float | int) and 0 <= p < 1 for p in given
    ):
        raise ValueError(
            f"{called}: zoneout must be a number from 0 to below 1, or a tuple of {cell.states}, "
            f"one for each tensor in the state of {cell.name}, got {zoneout!r}"
        )
    rates = tuple(float(p) for p in given)
    tied = {rates[s] for s in cell.tied}
    if projects and 0 in cell.tied and any(tied):
        raise ValueError(
            f"{called}: h is projected, so that no unit can keep it, nor the tensors of the state "
            f"of {cell.name} that belong to it: leave zoneout or proj_size out, got {zoneout!r}"
        )
    if len(tied) > 1:
        raise ValueError(
            f"{called}: the tensors {', '.join(map(str, cell.tied))} in the state of {cell.name} "
            f"belong together: give them one zoneout, got {zoneout!r}"
        )
    if projects and rates[0]:
        raise ValueError(
            f"{called}: h is projected, so that no unit can keep it: the first zoneout must be 0, "
            f"got {zoneout!r}"
        )
    return rates if any(rates) else ()


@lru_cache(maxsize=256)
def with_zoneout(cell: Cell, rates: Rates, draws: bool) -> Cell:
    """Return a cell with zoneout.

    Args:
        cell: the cell.
        rates: of the tensors of its state; (): none.
        draws: whether masks decide, as in training, or each state is its mean over them.
    """
    if not rates:
        return cell
    step = _masked if draws else _mean
    return replace(
        cell,
        name=f"{cell.name} with zoneout",
        equations=partial(step, of=cell, rates=rates),
        gates=None if cell.gates is None else partial(_gates, of=cell),
        masks=len(_masks(cell, rates)) if draws else 0,
        by_hand=None,
        is_native=False,
        phi=None,
        draw=None,
    )


def mask_rates(cell: Cell, rates: Rates) -> Rates:
    """Return the rate of each mask of a cell with zoneout, in their order."""
    return tuple(rates[s] for s in _masks(cell, rates))


def _masks(cell: Cell, rates: Rates) -> list[int]:
    """For each mask, the first tensor of the state that it is for."""
    return [s for s, p in enumerate(rates) if p and s not in cell.tied[1:]]


def _masked(x: Blocks, h: Blocks, state: State, units: Blocks, of: Cell, rates: Rates) -> State:
    after = of.equations(x[: of.gates_x], h, state, units)
    masks: list[Tensor | None] = [None] * len(after)
    for s, mask in zip(_masks(of, rates), x[of.gates_x :], strict=True):
        for each in of.tied if s in of.tied else (s,):
            masks[each] = mask
    return tuple(
        a if m is None else torch.where(m != 0, b, a)
        for m, b, a in zip(masks, state, after, strict=True)
    )


def _mean(x: Blocks, h: Blocks, state: State, units: Blocks, of: Cell, rates: Rates) -> State:
    after = of.equations(x, h, state, units)
    found = [
        a if p == 0 else p * b + (1 - p) * a for p, b, a in zip(rates, state, after, strict=True)
    ]
    if of.mean is not None and (p := rates[of.tied[0]]):
        both = [tuple(each[s] for s in of.tied) for each in (state, after)]
        for s, m in zip(of.tied, of.mean(both[0], both[1], p), strict=True):
            found[s] = m
    return tuple(found)


def _gates(x: Blocks, h: Blocks, state: State, units: Blocks, of: Cell) -> dict[str, Tensor]:
    assert of.gates is not None
    return of.gates(x[: of.gates_x], h, state, units)
