"""The library's cells that torch.nn does not have, beside autograd on their equations."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import using
from torch import Tensor

from bptt._src.engines import kernel_library

SEQUENCE = struct.Struct("=42q")  # the fields of a bptt_sequence
NO_CELL = -2
LEAVES = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "units")
RESULTS = [*LEAVES[:3], "none, of a projection", *LEAVES[3:]]
SIZES = {"MGU": (2, 1, 0), "PEEPHOLE_LSTM": (4, 2, 3)}  # gates, states, units
EACH_CELL = pytest.mark.parametrize("cell", SIZES)


@pytest.fixture(scope="module", autouse=True, params=kernel_library.ISAS)
def path(request):
    """The kind of vectors that all of this is tested with."""
    with using(request.param) as backend:
        yield backend


# -------------------------------------------------------------------------------- equations


def mgu(a: Tensor, p: Tensor, state: list[Tensor], _: Tensor) -> list[Tensor]:
    """One step, of the gates' parts from the input and from h: Zhou et al. (2016)."""
    (a_f, a_n), (p_f, p_n), h = a.chunk(2), p.chunk(2), state[0]
    f = torch.sigmoid(a_f + p_f)
    n = torch.tanh(a_n + f * p_n)
    return [(1 - f) * h + f * n]


def peephole_lstm(a: Tensor, p: Tensor, state: list[Tensor], u: Tensor) -> list[Tensor]:
    """One step, with a weight of each unit from c to the gates: Gers et al. (2002)."""
    i, f, g, o = (a + p).chunk(4)
    before = state[1]
    i, f = torch.sigmoid(i + u[0] * before), torch.sigmoid(f + u[1] * before)
    c = f * before + i * torch.tanh(g)
    o = torch.sigmoid(o + u[2] * c)
    return [o * torch.tanh(c), c]


STEPS = {"MGU": mgu, "PEEPHOLE_LSTM": peephole_lstm}


# ------------------------------------------------------------------------------------ calls


@dataclass(frozen=True)
class Problem:
    """What a call is about; its tensors follow from it."""

    cell: str
    lengths: tuple[int, ...]  # of the sequences, longest first
    inputs: int = 3
    hidden: int = 5
    reverse: bool = False
    bias: bool = True
    carry: bool = False
    resets: bool = False
    every_reach: tuple[int, int] | None = None  # windows
    dtype: torch.dtype = torch.float64

    @property
    def sizes(self) -> list[int]:
        return [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]

    def row(self, t: int, b: int) -> int:
        return sum(self.sizes[:t]) + b

    def walks(self) -> list[tuple[int, list[int]]]:
        """The sequence of each window, and its steps in the order of the backward pass."""
        if self.every_reach is None:
            steps = [range(n) if self.reverse else range(n - 1, -1, -1) for n in self.lengths]
            return [(b, list(of_b)) for b, of_b in enumerate(steps)]
        every, reach = self.every_reach
        windows = [
            (b, list(range(min(t + every, n) - 1, max(0, t + every - reach) - 1, -1)))
            for b, n in enumerate(self.lengths)
            for t in range(0, n, every)
        ]
        return sorted(windows, key=lambda w: -len(w[1]))

    def walked(self) -> tuple[list[int], list[int]]:
        """How many windows each step of theirs has, and the rows of the sequence, step by step."""
        walks = self.walks()
        running = [[w for w in walks if u < len(w[1])] for u in range(len(walks[0][1]))]
        rows = [self.row(steps[u], b) for u, at_u in enumerate(running) for b, steps in at_u]
        return [len(at_u) for at_u in running], rows

    def tensors(self) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(self.dtype)

        gates, states, units = SIZES[self.cell]
        N, B, I, H = sum(self.lengths), len(self.lengths), self.inputs, self.hidden
        rows, ends = (len(self.walked()[1]), len(self.walks())) if self.every_reach else (N, B)
        found = {"x": normal(N, I), "w_ih": normal(gates * H, I) / I**0.5}
        found["w_hh"] = normal(gates * H, H) / H**0.5
        if self.bias:
            found |= {"b_ih": normal(gates * H), "b_hh": normal(gates * H)}
        if units:
            found["units"] = normal(units, H)
        for i in range(states):
            found |= {f"state_{i}": normal(B, H), f"d_state_{i}": normal(ends, H)}
        found["d_y"] = normal(rows, H)
        if SIZES[self.cell][1] > 1:
            found["d_other"] = normal(rows, H)
        if self.carry:
            factors = torch.tensor([0, 0.5, 1, 1.25], dtype=self.dtype)
            found["carry"] = factors[torch.randint(4, (N,), generator=random)]
        if self.resets:
            found["resets"] = torch.rand(N, generator=random) < 0.3
        return found

    def native(self, threads: int = 1) -> dict[str, Tensor]:
        """Both passes of the library: the output, the final state, and all gradients."""
        t, library, states = self.tensors(), kernel_library.library(), SIZES[self.cell][1]
        N, B, I, H = sum(self.lengths), len(self.lengths), self.inputs, self.hidden
        number, double = kernel_library.cells()[self.cell], self.dtype is torch.float64
        sizes = (ctypes.c_int64 * len(self.sizes))(*self.sizes)
        kept = t["x"].new_empty(library.bptt_kept(number, double, N, H, False))
        found = {"y": t["x"].new_empty(N, H)}
        found |= {f"final_{i}": torch.empty_like(t[f"state_{i}"]) for i in range(states)}
        found |= {f"d_{n}": torch.empty_like(t[n]) for n in LEAVES if n in t}
        found |= {f"d_state_{i}": t[f"d_state_{i}"] for i in range(states)}

        def at(*names: str) -> list[int]:
            of = t | found
            return [of[n].data_ptr() if n in of else 0 for n in names]

        given = [
            *(number, double, threads, self.reverse, len(sizes), B, I, H, N, H),
            ctypes.addressof(sizes),
            *at(
                "x",
                "w_ih",
                "w_hh",
                "",
                "b_ih",
                "b_hh",
                "units",
                "state_0",
                "state_1",
                "resets",
                "y",
            ),
            kept.data_ptr(),
        ]
        forward = SEQUENCE.pack(*given, *at("final_0", "final_1"), *[0] * 17)
        assert library.bptt_forward(forward) == 0
        walk = [0] * 4
        if self.every_reach:
            running, rows = [(ctypes.c_int64 * len(n))(*n) for n in self.walked()]
            walk = [len(running), ctypes.addressof(running), ctypes.addressof(rows), 0]
        gradients = at(
            "carry", "d_y", "d_other", "d_state_0", "d_state_1", *(f"d_{n}" for n in RESULTS)
        )
        assert library.bptt_backward(SEQUENCE.pack(*given, 0, 0, *gradients, 0, *walk)) == 0
        return found

    def autograd(self) -> dict[str, Tensor]:
        """The same from the equations, one sequence and one window after the other."""
        t = self.tensors()
        leaves = {n: t[n].requires_grad_() for n in LEAVES if n in t}
        states = SIZES[self.cell][1]
        zero = torch.zeros((), dtype=self.dtype)
        before: dict[int, list[Tensor]] = {}  # the state before each row's step
        found = {"y": torch.empty(sum(self.lengths), self.hidden, dtype=self.dtype)}
        found |= {f"final_{i}": torch.empty_like(t[f"state_{i}"]) for i in range(states)}

        def run(b: int, steps: list[int], state: list[Tensor]) -> list[list[Tensor]]:
            after = []
            for step in steps:
                row = self.row(step, b)
                before.setdefault(row, state)
                if self.carry:
                    c = t["carry"][row]
                    state = [s * c + (s - s * c).detach() for s in state]
                if self.resets and t["resets"][row]:
                    state = [s * 0 for s in state]
                a = t["w_ih"] @ t["x"][row] + t.get("b_ih", zero)
                p = t["w_hh"] @ state[0] + t.get("b_hh", zero)
                state = STEPS[self.cell](a, p, state, t.get("units", zero))
                after.append(state)
            return after

        with torch.no_grad():
            for b, length in enumerate(self.lengths):
                steps = list(range(length))[:: -1 if self.reverse else 1]
                after = run(b, steps, [t[f"state_{i}"][b] for i in range(states)])
                for step, state in zip(steps, after, strict=True):
                    found["y"][self.row(step, b)] = state[0]
                for i in range(states):
                    found[f"final_{i}"][b] = after[-1][i]

        # Each window begins with the state that the sequence had there.
        walks, running = self.walks(), self.walked()[0]
        loss, firsts = zero, []
        for w, (b, backward) in enumerate(walks):
            steps = backward[::-1]
            first = before[self.row(steps[0], b)]
            firsts.append([s.clone().requires_grad_() for s in first])
            after = run(b, steps, firsts[-1])
            for u, state in enumerate(reversed(after)):
                row = sum(running[:u]) + w if self.every_reach else self.row(backward[u], b)
                more = [t[n][row] for n in ("d_y", "d_other") if n in t]
                loss = loss + sum((d * s).sum() for d, s in zip(more, state, strict=True))
            for i in range(states):
                loss = loss + (t[f"d_state_{i}"][w] * after[-1][i]).sum()
        loss.backward()
        found |= {f"d_{n}": leaf.grad for n, leaf in leaves.items()}
        found |= {f"d_state_{i}": torch.stack([f[i].grad for f in firsts]) for i in range(states)}
        return found


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, right in theirs.items():
        scale = max(1.0, right.abs().max().item())
        assert (ours[name] - right).abs().max().item() <= tolerance * scale, name


# ------------------------------------------------------------------------------------ tests


@EACH_CELL
@settings(max_examples=15)
@given(data=st.data())
def test_agrees_with_autograd(cell, data):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    windows = data.draw(st.none() | st.tuples(st.integers(1, 3), st.integers(3, 5)))
    problem = Problem(
        cell,
        tuple(sorted(lengths, reverse=True)),
        inputs=data.draw(st.sampled_from([1, 3, 17])),
        hidden=data.draw(st.sampled_from([1, 2, 7, 8, 9, 16, 17, 33])),
        reverse=windows is None and data.draw(st.booleans()),
        bias=data.draw(st.booleans()),
        carry=data.draw(st.booleans()),
        resets=data.draw(st.booleans()),
        every_reach=windows,
    )
    assert_close(problem.native(), problem.autograd(), 1e-11)


@EACH_CELL
@pytest.mark.parametrize("windows", [None, (2, 3)])
def test_float32_agrees_with_autograd_in_float64(cell, windows):
    options = {"every_reach": windows, "resets": True, "hidden": 19}
    ours = Problem(cell, (5, 4, 4, 1), dtype=torch.float32, **options).native()
    assert_close(ours, Problem(cell, (5, 4, 4, 1), **options).autograd(), 3e-6)


@EACH_CELL
@pytest.mark.parametrize("windows", [None, (2, 3)])
def test_two_threads_give_the_same_bits(cell, windows):
    problem = Problem(
        cell, (5,) * 6 + (2,) * 3, 9, 70, every_reach=windows, resets=True, carry=True
    )
    alone, together = problem.native(1), problem.native(2)
    assert [n for n, t in alone.items() if not torch.equal(t, together[n])] == []


@EACH_CELL
def test_says_its_sizes(cell):
    sizes = (ctypes.c_int64 * 4)()
    assert kernel_library.library().bptt_cell_sizes(kernel_library.cells()[cell], sizes) == 0
    assert (sizes[0], sizes[2], sizes[3]) == SIZES[cell]


def test_every_cell_has_a_number_and_no_other_number_runs():
    library, numbers = kernel_library.library(), kernel_library.cells()
    assert set(numbers) >= {"RNN_TANH", "RNN_RELU", "RNN_SIGMOID", "GRU", "LSTM", *SIZES}
    assert sorted(numbers.values()) == list(range(library.bptt_cells()))
    for number in (-1, len(numbers)):
        assert library.bptt_cell_name(number) is None
        assert library.bptt_kept(number, 1, 3, 5, 0) == NO_CELL
        call = SEQUENCE.pack(number, *[0] * 41)
        assert library.bptt_forward(call) == library.bptt_backward(call) == NO_CELL
