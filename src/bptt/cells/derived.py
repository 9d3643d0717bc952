"""The two recursions of any cell, from its equations alone.

The equations are elementwise, so every local derivative is diagonal: autograd finds those of all
rows at once, and what is left is the recursion of the deltas (:mod:`bptt.cells.recursion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells.cell import Cell
from bptt.cells.recursion import (
    Deltas,
    FromAfter,
    Kept,
    Recursion,
    Setting,
    cross,
    report,
    rows_after,
    rows_before,
)
from bptt.cells.weights import Blocks, State, Weights

Terms = list[tuple[int, Tensor]]
"""Local derivatives [N, H] with respect to one thing, each with the number of the result."""


def recursion_of(cell: Cell, w: Weights) -> Recursion:
    """Return the cell's recursion: that by hand, where there is one that serves."""
    by_hand = cell.by_hand
    return by_hand if by_hand and (w.hr is None or by_hand.projects) else Derived(cell)


@dataclass(frozen=True)
class Derived:
    """A cell's recursion, derived from its equations."""

    cell: Cell
    sums_biases = False  # the equations may use the two parts of a gate apart from each other
    projects = keeps_blocks = True

    def forward(self, A: Tensor, state: State, of: Setting) -> tuple[Kept, State]:
        """Take step after step; W_hh h_{t-1} + b_hh of each is kept beside A."""
        w, steps, boundary = of
        cell, H, N = self.cell, self.cell.hidden(w), len(A)
        after = [A.new_empty(N, s.shape[1]) for s in state]
        B, W = A.new_empty(N, cell.gates_h * H), w.hh.t()
        M = A.new_empty(N, H) if w.hr is not None else None
        units = () if w.units is None else w.units.unbind(0)
        for a, b, m, reset, *rows in steps.forth(A, B, M, boundary.resets, *after):
            before = rows_before(state, len(a), reset)
            torch.mm(before[0], W, out=b)
            if w.b_hh is not None:
                b += w.b_hh
            first, *others = cell.equations(*self._blocks(a, b), before, units)
            if m is not None and w.hr is not None:
                m.copy_(first)
                first = m.mm(w.hr.t())
            for row, new in zip(rows, (first, *others), strict=True):
                row.copy_(new)
            state = rows_after(state, tuple(rows))
        return Kept(tuple(after), (A, B) if M is None else (A, B, M)), state

    def backward(self, kept: Kept, before: State, given: FromAfter, of: Setting) -> Deltas:
        """δ_k = Σ_i ∂(state i)/∂(gate k) ⊙ ∂L/∂(state i), and likewise for the state before."""
        (D, d_state, norms, _), (w, steps, boundary) = given, of
        D_each = (D, *given.of_others(self.cell.states))
        cell, N = self.cell, len(kept.own[0])
        local = self._local_derivatives(kept.own, before, w)
        of_x, local = local[: cell.gates_x], local[cell.gates_x + cell.masks :]
        of_h, local = local[: cell.gates_h], local[cell.gates_h :]
        of_state, of_units = local[: cell.states], local[cell.states :]
        # ∂L/∂(what the equations return), all of it: the gates of x need it after the loop.
        whole = [d.new_empty(N, cell.hidden(w)) for d in d_state]
        D_out = None if w.hr is None else torch.empty_like(kept.states[0])
        Delta = torch.empty_like(kept.own[1])
        for (d_out, carry, cut, norm), d_each, g, (delta, *factors) in zip(
            steps.back(D_out, boundary.carry, boundary.cuts, norms),
            steps.back(*D_each),
            steps.back(*whole),
            steps.back(Delta, *(d for terms in (*of_h, *of_state) for _, d in terms)),
            strict=True,
        ):
            block, factor = delta.chunk(cell.gates_h, 1) if cell.gates_h else (), iter(factors)
            after = [s[: len(delta)] for s in d_state]
            report(norm, *after)
            for d, more in zip(after, d_each, strict=True):
                if more is not None:
                    d += more
            for to, d_s in zip(g[1:], after[1:], strict=True):
                to.copy_(d_s)
            if w.hr is None:
                g[0].copy_(after[0])
            else:
                d_out.copy_(after[0])
                torch.mm(after[0], w.hr, out=g[0])
            for to, terms in zip((*block, *after), (*of_h, *of_state), strict=True):
                _sum(to, g, [(i, next(factor)) for i, _ in terms])
            after[0].addmm_(delta, w.hh)
            cross(carry, cut, *after)
        return Deltas(
            _whole(whole, of_x), Delta, D_out, _whole(whole, of_units) if cell.units else None
        )

    def _local_derivatives(self, own: tuple[Tensor, ...], before: State, w: Weights) -> list[Terms]:
        """Differentiate the equations, for all rows at once.

        Returns:
            For each block of x, mask, block of h, tensor of the state before, and vector of units:
            the derivatives [N, H] that are not zero, with the number of the result.
        """
        cell, N = self.cell, len(own[0])
        with torch.enable_grad():
            x, h = self._blocks(own[0].detach(), own[1].detach())
            units = () if w.units is None else w.units.detach().unbind(0)
            given = [t.detach().requires_grad_() for t in (*x, *h, *before)]
            given += [u.expand(N, len(u)).requires_grad_() for u in units]
            a, c = len(x), len(given) - cell.units
            b = a + len(h)
            results = cell.equations(
                tuple(given[:a]), tuple(given[a:b]), tuple(given[b:c]), tuple(given[c:])
            )
        local: list[Terms] = [[] for _ in given]
        for i, result in enumerate(results):
            if not result.requires_grad:
                continue
            of_result = torch.autograd.grad(
                result, given, torch.ones_like(result), retain_graph=True, allow_unused=True
            )
            for terms, d in zip(local, of_result, strict=True):
                if d is not None:
                    terms.append((i, d))
        return local

    def _blocks(self, A: Tensor, B: Tensor) -> tuple[Blocks, Blocks]:
        of_h = B.chunk(self.cell.gates_h, 1) if self.cell.gates_h else ()
        return A.chunk(self.cell.gates_x + self.cell.masks, 1), of_h


def _sum(to: Tensor, g: Sequence[Tensor], terms: Terms) -> None:
    """Put Σ g_i ⊙ D_i in a place; zero where there are none."""
    if not terms:
        to.zero_()
    for number, (i, d) in enumerate(terms):
        if number == 0:
            torch.mul(g[i], d, out=to)
        else:
            to.addcmul_(g[i], d)


def _whole(g: Sequence[Tensor], local: list[Terms]) -> Tensor:
    """The same for all rows at once, block beside block."""
    found = g[0].new_empty(len(g[0]), len(local) * g[0].shape[1])
    for to, terms in zip(found.chunk(len(local), 1), local, strict=True):
        _sum(to, g, terms)
    return found
