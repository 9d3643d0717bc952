"""The two recursions of any cell, by programs of the native library that its equations become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bptt._src.engines.guard import dense, room
from bptt._src.engines.kernel_library import type_of
from bptt._src.engines.loops.loop import Columns, Loop
from bptt._src.engines.loops.shapes import NotAProgram
from bptt._src.engines.loops.step import Sizes
from bptt.cells.cell import Cell
from bptt.cells.recursion import Deltas, FromAfter, Kept, Setting
from bptt.cells.weights import State, Weights


def why_not(cell: Cell, *sizes: Any) -> str | None:
    """Return why a layer's equations cannot become programs; None where they can.

    Args:
        cell: the cell.
        sizes: what :func:`sizes_of` gives.

    They have run before (:func:`bptt.cells.check.check_equations`), so whatever else tracing them
    raises is a reason too: the twin runs them as they are.
    """
    found = _found(cell, *sizes)
    return found if isinstance(found, str) else None


def sizes_of(cell: Cell, w: Weights) -> tuple[int, int, bool, bool, torch.dtype]:
    """Return what the programs of a layer depend on besides the cell."""
    hidden = cell.hidden(w)
    outputs = hidden if w.hr is None else w.hr.shape[0]
    return hidden, outputs, w.b_hh is not None and cell.gates_h > 0, w.hr is not None, w.ih.dtype


@lru_cache(maxsize=256)
def _found(cell: Cell, *sizes: Any) -> Loop | str:
    try:
        loop = loop_of(cell, *sizes)
        loop.forward, loop.backward((True,) * cell.states)
        return loop
    except NotAProgram as e:
        return f"the equations of the cell {cell.name} cannot become a program: {e}"
    except MemoryError:
        raise
    except Exception as e:
        return (
            f"the equations of the cell {cell.name} cannot be traced: {type(e).__name__}: "
            f"{str(e).strip().splitlines()[0] if str(e).strip() else ''}"
        )


def loop_of(
    cell: Cell, hidden: int, outputs: int, has_bias: bool, projects: bool, dtype: torch.dtype
) -> Loop:
    """Make the programs of a layer.

    Args:
        cell: whose equations become programs.
        hidden: the number of hidden units, H.
        outputs: the size of h, P.
        has_bias: whether there is b_hh.
        projects: whether there is W_hr.
        dtype: float32 or float64.

    Raises:
        NotAProgram: the equations do what programs cannot.
    """
    X, R, H, U = cell.gates_x + cell.masks, cell.gates_h, hidden, cell.units

    def step(
        rows: Sequence[Tensor],
        states: Sequence[Tensor],
        vectors: Sequence[Tensor],
        weights: Sequence[Tensor],
        adds: Sequence[Tensor],
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        units, biases = vectors[:U], vectors[U:]
        of_h: tuple[Tensor, ...] = ()
        if R:
            of_h = linear(states[0], weights[0]).split(H, 1)
            of_h = tuple(a + b for a, b in zip(of_h, adds, strict=False))
            if has_bias:
                of_h = tuple(a + b.detach() for a, b in zip(of_h, biases, strict=True))
        before = states[0] if not projects else states[0].new_zeros(1)  # which is not read
        of_x = (*rows[: cell.gates_x], *(m.detach() for m in rows[cell.gates_x :]))
        after = cell.equations(of_x, of_h, (before, *states[1:]), tuple(units))
        if not projects:
            return after, ()
        return (linear(after[0], weights[-1]) + adds[-1], *after[1:]), (after[0],)

    sizes = Sizes(
        rows=(H,) * X,
        states=(outputs, *(H,) * (cell.states - 1)),
        vectors=(H,) * (U + (R if has_bias else 0)),
        weights=(*(((R * H, outputs),) if R else ()), *(((outputs, H),) if projects else ())),
        adds=(*(H,) * R, *((outputs,) if projects else ())),
    )
    return Loop(
        step,
        sizes,
        dtype,
        row_places=[Columns("x", g * H) for g in range(X)],
        vector_places=[
            *(Columns("units", k * H) for k in range(U)),
            *(Columns("b_hh", g * H) for g in range(R if has_bias else 0)),
        ],
        weights=[*(["hh"] if R else []), *(["hr"] if projects else [])],
        add_places=[
            *(Columns("h", g * H) for g in range(R)),
            *([Columns("output")] if projects else []),
        ],
    )


@dataclass(frozen=True)
class Looped:
    """A cell's recursion, run by the native library."""

    cell: Cell
    bf16: bool = False
    sums_biases = keeps_blocks = False
    projects = True

    def _loop(self, w: Weights) -> Loop:
        found = _found(self.cell, *sizes_of(self.cell, w))
        assert isinstance(found, Loop), found  # the engine has asked
        return found

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """Run the loop over the steps."""
        w, steps, boundary = of
        loop, N = self._loop(w), len(A)
        after = tuple(A.new_empty(N, s.shape[1]) for s in state)
        kept = A.new_empty(N, loop.kept)
        tensors = {"x": A, "kept": kept, **self._weights(w, loop)}
        tensors |= {f"after {i}": t for i, t in enumerate(after)}
        own = (kept, A) if loop.uses_rows else (kept,)
        if w.hr is not None:
            tensors["out 0"] = A.new_empty(N, self.cell.hidden(w))
            own = (*own, tensors["out 0"])
        finals = tuple(torch.empty_like(s, memory_format=torch.contiguous_format) for s in state)
        before = [dense("the initial state", s, A.dtype, s.shape) for s in state]
        loop.forward.run(
            tensors,
            list(zip(before, finals, strict=True)),
            steps.sizes,
            type_=type_of(A.dtype, self.bf16),
            last_first=steps.reverse,
            zero_before=_of_rows("resets", boundary.resets, torch.bool, N),
        )
        return Kept(after, own), finals

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """Run the loop of the deltas."""
        (D, d_state, norms, _), (w, steps, boundary) = given, of
        cell, loop, dtype = self.cell, self._loop(w), w.ih.dtype
        N, H = len(before[0]), cell.hidden(w)
        D_each = (D, *given.of_others(cell.states))
        of_x = kept.own[0].new_empty(N, cell.gates_x * H)
        of_h = kept.own[0].new_empty(N, cell.gates_h * H)
        of_units = kept.own[0].new_empty(N, cell.units * H)
        tensors = {"of x": of_x, "of h": of_h, "of units": of_units, "kept": kept.own[0]}
        tensors |= self._weights(w, loop)
        if loop.uses_rows:
            tensors["x"] = kept.own[1]
        for i, (after, one, d) in enumerate(zip(kept.states, before, D_each, strict=True)):
            tensors |= {f"after {i}": after, f"before {i}": one}
            if d is not None:
                tensors[f"d after {i}"] = dense("a gradient", d, dtype, d.shape)
        of_output = None
        if w.hr is not None:
            of_output = tensors["of output"] = torch.empty_like(kept.states[0])
            tensors["out 0"] = kept.own[-1]
        for part, to in (("rows", of_x), ("adds", of_h), ("vectors", of_units)):
            for i in loop.unused(part):  # of masks there is no place
                to[:, i * H : (i + 1) * H] = 0
        loop.backward(tuple(d is not None for d in D_each)).run(
            tensors,
            [(room("the final state's gradient", d, dtype, d.shape),) * 2 for d in d_state],
            steps.sizes,
            type_=type_of(dtype, self.bf16),
            last_first=not steps.reverse,
            factors_after=_of_rows("carry", boundary.carry, dtype, N),
            zero_after=_of_rows("cuts", boundary.cuts, torch.bool, N),
            norms=norms if norms is None else room("row_norms", norms, norms.dtype, norms.shape),
        )
        return Deltas(of_x, of_h, of_output, of_units if cell.units else None)

    def _weights(self, w: Weights, loop: Loop) -> dict[str, Tensor]:
        found = {"hh": w.hh.detach()}
        if w.hr is not None:
            found["hr"] = w.hr.detach()
        if w.b_hh is not None:
            found["b_hh"] = w.b_hh.detach().unsqueeze(0)
        if w.units is not None:
            found["units"] = w.units.detach().reshape(1, -1)
        of_vectors = loop.of_vectors(found)
        if of_vectors is not None:
            found["of vectors"] = of_vectors
        return {name: dense(name, t, t.dtype, t.shape) for name, t in found.items()}


def _of_rows(name: str, t: Tensor | None, dtype: torch.dtype, n: int) -> Tensor | None:
    return None if t is None else dense(name, t, dtype, (n, 1))
