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
            or they read h_{t-1} itself although there is a projection; or the cell has masks, or
            its ``mean`` of two equal states is another state.
    """
    if cell.masks:
        raise ValueError(
            f"bptt.Recurrent: only zoneout makes masks, got a cell with masks={cell.masks}: leave "
            "them out, and give what they stand for as inputs"
        )
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
        if projects and _reads_h(cell, given):
            raise _refusal(
                cell, "read h itself, and a projection changes its size: leave proj_size out"
            )
        if cell.gates is not None:
            _check_gates(cell, given)
        if cell.mean is not None:
            tied = tuple(results[s] for s in cell.tied)
            _check_mean(cell, cell.mean(tied, tied, 0.25), tied)


class _WasRead(Exception):
    """A tensor that has no values was looked at."""


class _Unread(Tensor):
    @classmethod
    def __torch_function__(cls, *args: object, **kwargs: object) -> Tensor:
        raise _WasRead


def _reads_h(cell: Cell, given: list[Tensor]) -> bool:
    x, h, (_, *others), units = _parts(cell, given)
    try:
        cell.equations(x, h, (torch.empty(B, H).as_subclass(_Unread), *others), units)
    except _WasRead:
        return True
    return False


def _check_gates(cell: Cell, given: list[Tensor]) -> None:
    assert cell.gates is not None
    found = cell.gates(*_parts(cell, given))
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) and t.shape == (B, H)
        for name, t in found.items()
    ):
        raise ValueError(
            f"bptt.Recurrent: the gates of {cell.name} must return a dictionary of tensors like "
            f"those of the state, [{B}, {H}] here, by name"
        )


def _check_mean(cell: Cell, found: object, expected: tuple[Tensor, ...]) -> None:
    if not (
        isinstance(found, tuple)
        and len(found) == len(expected)
        and all(
            isinstance(a, Tensor) and a.shape == b.shape
            for a, b in zip(found, expected, strict=True)
        )
        and all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, expected, strict=True))
    ):
        raise ValueError(
            f"bptt.Recurrent: the mean of {cell.name} must return the mean of each of the "
            f"{len(expected)} tied tensors; of two equal states it did not return these tensors"
        )


def _run(cell: Cell, given: list[Tensor]) -> tuple[Tensor, ...]:
    results = cell.equations(*_parts(cell, given))
    if not isinstance(results, tuple):
        raise _refusal(
            cell, f"must return a tuple of tensors, the state; got {type(results).__name__}"
        )
    shapes = [tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in results]
    if shapes != [(B, H)] * cell.states:
        expected = f"{cell.states} tensor{'s' if cell.states > 1 else ''} like those of the state"
        raise _refusal(cell, f"must return {expected}, [{B}, {H}] here; got {shapes}")
    return tuple(results)


def _parts(cell: Cell, given: list[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """Return the arguments of the equations: blocks of x and of h, the state, the units."""
    a, b = cell.gates_x, cell.gates_x + cell.gates_h
    parts = (given[:a], given[a:b], given[b : b + cell.states], given[b + cell.states :])
    return tuple(tuple(t.clone() for t in part) for part in parts)


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )


def _refusal(cell: Cell, why: str) -> ValueError:
    return ValueError(f"bptt.Recurrent: the equations of {cell.name} {why}")
