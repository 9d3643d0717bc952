"""Problems with signal in them: where nothing flows back, every wrong gradient is right."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from bptt.cells import Cell, State, Weights


def weights(
    cell: Cell, inputs: int, hidden: int, *, bias: bool = True, projection: int = 0, seed: int = 0
) -> Weights:
    """Draw weights whose recurrent blocks are near orthogonal, so that gradients reach far back."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    outputs = projection or hidden
    blocks = [
        torch.linalg.qr(normal(max(hidden, outputs), max(hidden, outputs)))[0][:hidden, :outputs]
        for _ in range(cell.gates)
    ]
    rows = cell.gates * hidden
    w = Weights(
        ih=0.5 * normal(rows, inputs),
        hh=torch.cat(blocks),
        b_ih=0.1 * normal(rows) if bias else None,
        b_hh=0.1 * normal(rows) if bias else None,
        hr=normal(projection, hidden) if projection else None,
    )
    return Weights(*(None if p is None else p.contiguous().requires_grad_() for p in w))


def state(cell: Cell, batch: int, hidden: int, *, projection: int = 0, seed: int = 1) -> State:
    """Draw an initial state that requires gradients."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (projection or hidden, hidden)[: cell.states]
    return tuple(
        torch.randn(batch, n, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_()
        for n in sizes
    )


@st.composite
def lengths(draw: st.DrawFn, most_steps: int = 6, most_sequences: int = 4) -> tuple[int, ...]:
    """Draw the lengths of the sequences of a batch, longest first."""
    drawn = draw(st.lists(st.integers(1, most_steps), min_size=1, max_size=most_sequences))
    return tuple(sorted(drawn, reverse=True))


def sizes_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Count how many of the sequences are still running at each step."""
    return tuple(sum(n > t for n in lengths) for t in range(max(lengths)))
