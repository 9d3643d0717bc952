"""Derivatives by blocks: of what comes out at step t, by what goes in at step s.

Each block of the Jacobian is projected onto random directions, u of the output and v of the input:
u · J[t, s] v. Autograd gives a row of these numbers for one backward pass, central differences a
column for a few forward passes; a wrong block shows with probability one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt._src.module_check.result import WrongNumber
from bptt._src.module_check.view import Run, View, floats
from bptt._src.pytree import is_float, map_tensors


class BlockRow(NamedTuple):
    """An output at one step, or a final state."""

    name: str
    t: int
    is_final: bool


class BlockColumn(NamedTuple):
    """An input at one step, an initial state, or a parameter."""

    name: str
    s: int | None
    is_parameter: bool


@dataclass(frozen=True)
class Directions:
    """The random directions, and what they are of."""

    rows: tuple[BlockRow, ...]
    columns: tuple[BlockColumn, ...]
    u: tuple[Tensor, ...]
    """For each output tensor, then for each final state."""
    v: tuple[Tensor, ...]
    """For each input tensor, each initial state and each parameter."""
    outputs: int
    """How many of ``u`` are of outputs."""
    inputs: int
    """How many of ``v`` are of inputs."""

    @classmethod
    def of(cls, view: View, run: Run | None = None) -> Directions:
        """Draw them for a view, and what a run of it returns: by default the module's own call."""
        with torch.no_grad():
            y, after = (run or view.whole)(view.inputs, view.state)
        ys, states, T = floats(y), floats(after), view.layout.steps
        names = ["y"] if len(ys) == 1 else [f"y[{k}]" for k in range(len(ys))]
        rows = [BlockRow(n, t, False) for n in names for t in range(T)]
        rows += [BlockRow(n, T - 1, True) for n in view.state_names(after, "n")]
        columns = [BlockColumn(n, s, False) for n in view.input_names for s in range(T)]
        columns += [BlockColumn(n, None, False) for n in view.state_names(view.state, "0")]
        columns += [BlockColumn(n, None, True) for n, _ in view.parameters]
        generator = torch.Generator().manual_seed(0)
        xs = floats(view.inputs)
        sources = [*xs, *floats(view.state), *(p for _, p in view.parameters)]
        u = tuple(_normal(v, generator) for v in (*ys, *states))
        v = tuple(_normal(v, generator) / (v.shape[-1] ** 0.5 if v.dim() else 1) for v in sources)
        return cls(tuple(rows), tuple(columns), u, v, len(ys), len(xs))

    def dots(self, of: list[Tensor], view: View) -> Tensor:
        """Multiply outputs and final states with ``u``, by rows: [R]."""
        sums = []
        for k, (a, u) in enumerate(zip(of, self.u, strict=True)):
            product = _real(a).double() * _real(u)
            if k < self.outputs:
                sums.append(product.movedim(view.layout.time, 0).flatten(1).sum(1))
            else:
                sums.append(product.sum().view(1))
        return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)

    def along(self, gradients: list[Tensor | None], view: View) -> Tensor:
        """Multiply gradients with ``v``, by columns: [C]."""
        sums, T = [], view.layout.steps
        for k, (g, v) in enumerate(zip(gradients, self.v, strict=True)):
            count = T if k < self.inputs else 1
            if g is None:
                sums.append(torch.zeros(count, dtype=torch.float64, device=v.device))
                continue
            product = _real(g).double() * _real(v)
            if k < self.inputs:
                sums.append(product.movedim(view.layout.time, 0).flatten(1).sum(1))
            else:
                sums.append(product.sum().view(1))
        return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)


def by_autograd(
    view: View, run: Run, directions: Directions, rows: Sequence[int] | None = None
) -> Tensor:
    """Compute blocks by backward passes, each through a graph of its own: [R, C].

    Args:
        view: the module.
        run: how it is called.
        directions: the directions.
        rows: which of them; all by default.
    """
    found = []
    for r in range(len(directions.rows)) if rows is None else rows:
        inputs, state = view.leaves()
        sources = [*floats(inputs), *floats(state), *(p for _, p in view.parameters)]
        y, after = run(inputs, state)
        scalar = directions.dots([*floats(y), *floats(after)], view)[r]
        gradients: list[Tensor | None] = [None] * len(sources)
        if scalar.requires_grad and sources:
            gradients = list(torch.autograd.grad(scalar, sources, allow_unused=True))
        found.append(directions.along(gradients, view).detach())
    return torch.stack(found).cpu()


def by_differences(
    view: View, run: Run, directions: Directions, width: float, columns: Sequence[int] | None = None
) -> Tensor:
    """Compute blocks by central differences of fourth order, in double precision: [R, C].

    Args:
        view: the module.
        run: how it is called.
        directions: the directions.
        width: how far apart the points are.
        columns: which of them; all by default.
    """

    def values(at: float, column: int) -> list[Tensor]:
        inputs, state = moved(view, directions, column, at)
        with torch.no_grad(), parameter_moved(view, directions, column, at):
            y, after = run(inputs, state)
        return [v.to(torch.complex128 if v.is_complex() else torch.float64)
                for v in (*floats(y), *floats(after))]  # fmt: skip

    found = []
    for c in range(len(directions.columns)) if columns is None else columns:
        a, b, d, e = (values(k * width, c) for k in (-2, -1, 1, 2))
        slopes = [
            (8 * (right - left) - (far - near)) / (12 * width)
            for near, left, right, far in zip(a, b, d, e, strict=True)
        ]
        found.append(directions.dots(slopes, view))
    if not found:
        return torch.zeros(len(directions.rows), 0, dtype=torch.float64)
    return torch.stack(found, 1).cpu()


def moved(view: View, directions: Directions, column: int, by: float) -> tuple[Any, Any]:
    """Return the inputs and the state, moved along a column's direction; parameters stay."""
    _, s, is_parameter = directions.columns[column]
    if is_parameter:
        return view.inputs, view.state
    at = _source(view, directions, column)
    v = directions.v[at]

    def move(tree: Any, first: int, only: int | None) -> Any:
        k = iter(range(first, first + len(floats(tree))))

        def one(x: Tensor) -> Tensor:
            if not is_float(x) or next(k) != at:
                return x
            step = (by * v).to(x.dtype)
            if only is not None:
                kept = torch.zeros_like(step)
                kept.narrow(view.layout.time, only, 1).copy_(step.narrow(view.layout.time, only, 1))
                step = kept
            return x + step

        return map_tensors(one, tree)

    return move(view.inputs, 0, s), move(view.state, directions.inputs, None)


@contextmanager
def parameter_moved(view: View, directions: Directions, column: int, by: float) -> Iterator[None]:
    """Move a parameter along a column's direction, and put it back to the bit; no other source."""
    if not directions.columns[column].is_parameter:
        yield
        return
    k = _source(view, directions, column)
    parameter = view.parameters[k - len(directions.v) + len(view.parameters)][1]
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.add_((by * directions.v[k]).to(parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def first_difference(
    directions: Directions,
    found: Tensor,
    expected: Tensor,
    tolerance: float | Tensor,
    which: Callable[[BlockRow], bool] = lambda row: True,
) -> tuple[WrongNumber, int, int] | None:
    """Find the first block in which two matrices differ: the least t, then the least s.

    Args:
        directions: what the rows and columns are.
        found: the numbers to check, [R, C].
        expected: the right ones.
        tolerance: of the largest number of the same two tensors; or the limits of all blocks.
        which: which rows are looked at.

    Returns:
        The problem, its row and its column; None where all are equal.
    """
    limits = (
        tolerance if isinstance(tolerance, Tensor) else thresholds(directions, expected, tolerance)
    )
    wrong = ~((found - expected).abs() <= limits)
    places = [(r, c) for r, c in wrong.nonzero().tolist() if which(directions.rows[r])]
    if not places:
        return None
    r, c = min(places, key=lambda at: (directions.rows[at[0]].t, at[0], at[1]))
    row, column = directions.rows[r], directions.columns[c]
    problem = WrongNumber(
        row.name, column.name, row.t, column.s, None, float(expected[r, c]), float(found[r, c])
    )
    return problem, r, c


def thresholds(directions: Directions, expected: Tensor, tolerance: float) -> Tensor:
    """The greatest error of each block: [R, C].

    It is relative to the largest block of the same two tensors, or to a hundredth of the largest
    of all, where all of those are smaller.
    """
    sizes = expected.abs().nan_to_num()
    largest = sizes.clone()
    rows, columns = [r.name for r in directions.rows], [c.name for c in directions.columns]
    for name in set(rows):
        at = torch.tensor([n == name for n in rows])
        for by in set(columns):
            of = torch.tensor([n == by for n in columns])
            block = at[:, None] & of[None]
            largest[block] = sizes[block].amax()
    overall = float(sizes.amax()) if sizes.numel() else 0.0
    return tolerance * largest.clamp_min(0.01 * overall)


def too_small(directions: Directions, found: Tensor, limits: Tensor) -> int:
    """Count blocks that carry a gradient, but too little of it to be judged."""
    faint = (found != 0) & (found.abs() < 10 * limits)
    causal = torch.tensor(
        [[c.s is None or c.s <= r.t for c in directions.columns] for r in directions.rows]
    )
    return int((faint & causal).sum()) if found.numel() else 0


def _source(view: View, directions: Directions, column: int) -> int:
    """The tensor that a column is of, as an index of ``v``."""
    T = view.layout.steps
    return column // T if column < directions.inputs * T else column - directions.inputs * (T - 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    dtype = torch.complex128 if like.is_complex() else torch.float64
    drawn = torch.randn(like.shape, generator=generator, dtype=dtype)
    return drawn.to(like.device)


def _real(v: Tensor) -> Tensor:
    return torch.view_as_real(v) if v.is_complex() else v
