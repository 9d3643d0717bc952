"""Whole calls of an engine, forward and backward: drawn, run, and what came of them by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from problems import sizes_of
from torch import Tensor

from bptt._src.engines.call import Call as EngineCall
from bptt._src.engines.call import Engine, Gradients, Incoming, Saved
from bptt._src.engines.windows import Windows, windows_of
from bptt._src.steps import Boundary, Steps
from bptt.cells import BY_NAME, Cell, State, Weights
from bptt.credit import Block

ALL = (True,) * 5 + (False, True)  # the last but one is of a projection
NAMES = ("x", "ih", "hh", "b_ih", "b_hh", "hr", "units")


class Given(NamedTuple):
    """The tensors of a call."""

    x: Tensor
    state: State
    w: Weights
    boundary: Boundary
    d_y: Tensor | None
    d_state: State


@dataclass(frozen=True)
class Call:
    """What a call is about; its tensors follow from it."""

    mode: str
    dtype: torch.dtype = torch.float64
    lengths: tuple[int, ...] = (4, 4, 4)
    inputs: int = 3
    hidden: int = 5
    reverse: bool = False
    bias: bool = True
    carry: bool = False
    resets: bool = False
    every_reach: tuple[int, int] | None = None  # windows
    by_windows: bool = False
    output_used: bool = True
    needed: tuple[bool, ...] = ALL
    seed: int = 0

    @property
    def cell(self) -> Cell:
        return BY_NAME[self.mode]

    @property
    def steps(self) -> Steps:
        return Steps(sizes_of(self.lengths), self.reverse)

    @property
    def windows(self) -> Windows | None:
        if self.every_reach is None:
            return None
        every, reach = self.every_reach
        T = max(self.lengths)
        blocks = [
            Block(first, min(first + every, T), max(first + every - reach, 0))
            for first in range(0, T, every)
        ]
        return windows_of(tuple(blocks), self.steps.sizes)

    def given(self) -> Given:
        """Draw the tensors, the same numbers for every dtype."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        N, B, I, H = sum(self.lengths), len(self.lengths), self.inputs, self.hidden
        windows = self.windows
        rows, columns = self.cell.gates_h * H, (I, H)
        ih, hh = (normal(rows, n) / n**0.5 for n in columns)
        units = 0.5 * normal(self.cell.units, H) if self.cell.units else None
        b_ih, b_hh = (0.3 * normal(rows) if self.bias else None for _ in range(2))
        x, initial = normal(N, I), tuple(normal(B, H) for _ in range(self.cell.states))
        carry = torch.tensor([0, 0.5, 1, 1.25])[torch.randint(4, (N, 1), generator=random)]
        resets = torch.rand(N, 1, generator=random) < 0.2
        outputs, ends = (N, B) if windows is None else (len(windows.rows), windows.steps.batch)
        d_y = normal(outputs, H) if self.output_used else None
        given = Given(
            x,
            initial,
            Weights(ih, hh, b_ih, b_hh, None, units),
            Boundary(carry if self.carry else None, resets if self.resets else None),
            d_y,
            tuple(normal(ends, H) for _ in initial),
        )
        return converted(given, self.dtype)

    def run(
        self, engine: Engine, given: Given | None = None, y: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run both passes, and give all results and gradients.

        Args:
            engine: which runs them.
            given: tensors in place of its own.
            y: the outputs that the backward pass is to take for those of the forward pass.
        """
        given = given or self.given()
        x, state, w, boundary, d_y, d_state = given
        call = EngineCall(
            self.cell, x, state, w, self.steps, boundary, self.windows, self.by_windows
        )
        out, final, kept = engine.forward(call, keep=True)
        row_norms = torch.full((sum(call.walk.sizes), self.cell.states), -1.0, dtype=torch.float64)
        of_x, *of_w = self._wanted
        needed = (of_x, *(True,) * self.cell.states, *of_w)
        incoming = Incoming(d_y, tuple(d.clone() for d in d_state), needed, row_norms)
        found = engine.backward(call, Saved(out if y is None else y, kept), incoming)
        named = {f"d_{n}": g for n, g in zip(NAMES, _all(found), strict=True)}
        named |= {"y": out} | {f"{n}_n": s for n, s in zip("hc", final, strict=False)}
        named |= {f"d_{n}_0": d for n, d in zip("hc", found.state, strict=False)}
        named["row_norms"] = row_norms
        assert tuple(g is not None for g in _all(found)) == self._wanted
        return {name: t for name, t in named.items() if t is not None}

    @property
    def _wanted(self) -> tuple[bool, ...]:
        """As autograd says it: of what is not there, no gradient is needed."""
        there = (True, True, True, self.bias, self.bias, False, self.cell.units > 0)
        return tuple(n and t for n, t in zip(self.needed, there, strict=True))


def _all(found: Gradients) -> tuple[Tensor | None, ...]:
    return (found.x, *found.w)


def converted(given: Given, dtype: torch.dtype) -> Given:
    """Change the dtype of all tensors but of what is not a number."""

    def convert(t):
        if isinstance(t, Tensor):
            return t if t.dtype == torch.bool else t.to(dtype)
        return (
            t
            if t is None
            else type(t)(*map(convert, t))
            if hasattr(t, "_fields")
            else tuple(map(convert, t))
        )

    return convert(given)


@st.composite
def calls(draw: st.DrawFn, mode: str, dtype: torch.dtype, work: float = 2e7) -> Call:
    """Draw a call that is done with about so many multiplications."""
    size = st.one_of(st.integers(1, 70), st.integers(1, 70), st.integers(120, 300), st.just(600))
    inputs, hidden = draw(size), draw(size)
    rows = int(work / (BY_NAME[mode].gates_h * hidden * (inputs + hidden)))
    rows = max(4, min(rows, 1500))
    batch = draw(st.sampled_from([1, 1, 2, 3, draw(st.integers(4, 70))]))
    batch = min(batch, rows)
    longest = draw(st.integers(1, min(rows // batch, 600)))
    if draw(st.booleans()):  # the others are packed
        lengths = (longest,) * batch
    else:
        drawn = draw(st.lists(st.integers(1, longest), min_size=batch - 1, max_size=batch - 1))
        lengths = (longest, *sorted(drawn, reverse=True))
    windows = draw(st.booleans()) and draw(st.booleans())
    every = draw(st.integers(1, max(1, longest // 3)))
    reach = every + draw(st.integers(1, min(2 * every, 9)))
    return Call(
        mode,
        dtype,
        lengths,
        inputs,
        hidden,
        reverse=not windows and draw(st.booleans()),
        bias=draw(st.booleans()),
        carry=draw(st.booleans()),
        resets=draw(st.booleans()),
        every_reach=(every, reach) if windows else None,
        by_windows=windows and draw(st.booleans()),
        output_used=draw(st.sampled_from([True, True, False])),
        needed=draw(st.sampled_from([ALL, ALL, draw(st.tuples(*[st.booleans()] * 7))])),
        seed=draw(st.integers(0, 999)),
    )
