"""Whether a cell's equations are what both passes over a sequence take them for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from bptt.cells.cell import Cell

B, H = 2, 3


def check_equations(cell: Cell, projects: bool = False) -> None:
    """Try a cell's equations on a few numbers.

    Args:
        cell: the cell.
        projects: whether what they call h is projected, so that h_{t-1} has another size.

    Raises:
        ValueError: they do not return the state; or they are not elementwise, draw random numbers,
            or use a tensor of their own that needs a gradient, so that gradients would be wrong;
            or they read h_{t-1} itself although there is a projection.
    """
    sizes = [(B, H)] * (cell.gates_x + cell.gates_h + cell.states) + [(H,)] * cell.units
    generator = torch.Generator().manual_seed(0)
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        given = [
            torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
            for size in sizes
        ]
        results = _run(cell, given)
        if any(r.requires_grad for r in results):
            raise _refusal(
                cell,
                "use a tensor of their own that requires gradients, and it would get none: make it "
                "one of units",
            )
        if not _same(results, _run(cell, given)):
            raise _refusal(cell, "return something else the second time: draw nothing in them")
        for t in given:
            t[..., 0] += 0.5  # of all sequences: units have no others
        for kept, result in zip(results, _run(cell, given), strict=True):
            if not _same([kept[:, 1:]], [result[:, 1:]]):
                raise _refusal(cell, "mix hidden units: they have to be elementwise")
        results = _run(cell, given)
        for t in given[: len(given) - cell.units]:
            t[0] += 0.5
        for kept, result in zip(results, _run(cell, given), strict=True):
            if not _same([kept[1:]], [result[1:]]):
                raise _refusal(cell, "mix the sequences of a batch: they have to be elementwise")
        results = _run(cell, given)
        given[cell.gates_x + cell.gates_h] += 0.5
        if projects and not _same(results, _run(cell, given)):
            raise _refusal(
                cell, "read h itself, and a projection changes its size: leave proj_size out"
            )


def _run(cell: Cell, given: list[Tensor]) -> tuple[Tensor, ...]:
    a, b = cell.gates_x, cell.gates_x + cell.gates_h
    parts = [given[:a], given[a:b], given[b : b + cell.states], given[b + cell.states :]]
    results = cell.equations(*(tuple(t.clone() for t in part) for part in parts))
    if not isinstance(results, tuple):
        raise _refusal(
            cell, f"must return a tuple of tensors, the state; got {type(results).__name__}"
        )
    shapes = [tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in results]
    if shapes != [(B, H)] * cell.states:
        expected = f"{cell.states} tensor{'s' if cell.states > 1 else ''} like those of the state"
        raise _refusal(cell, f"must return {expected}, [{B}, {H}] here; got {shapes}")
    return tuple(results)


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )


def _refusal(cell: Cell, why: str) -> ValueError:
    return ValueError(f"bptt.Recurrent: the equations of {cell.name} {why}")
