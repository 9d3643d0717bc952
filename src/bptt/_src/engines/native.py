"""The native kernels: whole calls of the library.

What each field of a call means is in ``csrc/bptt_kernels.h``.
"""

from __future__ import annotations

import ctypes
import math
import operator
import struct
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bptt._src.engines import flow_step, threads
from bptt._src.engines.call import AnyCall, Call, Gradients, Incoming, Saved
from bptt._src.engines.guard import (
    address,
    addresses,
    all_dense,
    dense,
    is_watched,
    only_by_autograd,
    room,
)
from bptt._src.engines.kernel_library import cells, has, library, projects, type_of
from bptt._src.engines.native_readout import cross_entropy as cross_entropy
from bptt._src.engines.native_readout import refuses_readout
from bptt._src.engines.readout import Readout
from bptt._src.engines.rooms import memory_for
from bptt._src.steps import Boundary
from bptt._src.uncompiled import at_compile_time, object_of
from bptt.cells import WEIGHT_NAMES, Cell, State, Weights

RECORDS = False

_STATES = ("the initial h", "the initial c")
_OTHERS = "the gradient of a state after each step"
_AFTER = ("the output", "what the forward pass kept")

# The fields of a bptt_sequence, in order; an address of 0 is none.
_SEQUENCE = struct.Struct("=42q")
_FORWARDS_ALONE = (0,) * 17
"""The fields after c_n."""


def serves(call: AnyCall) -> str | None:
    """Return why it cannot do this, as :class:`engines.call.Engine` says."""
    if is_watched():
        return "a mode of torch has to see each operation"
    reason = only_by_autograd(*call.tensors())
    if reason is not None:
        return reason
    if isinstance(call, Call):
        return _refuses(call)
    return refuses_readout(call) if isinstance(call, Readout) else flow_step.refuses(call)


def _refuses(call: Call) -> str | None:
    return refuses_kind(call.cell, call.x, call.w) or (
        None if call.x.numel() else "the input is empty"
    )


def refuses_kind(cell: Cell, x: Tensor, w: Weights) -> str | None:
    """Return why it cannot do calls like this one, whatever their lengths; None where it can."""
    reason = refuses_tensors(x, w)
    if reason is not None:
        return reason
    if not (cell.is_native and _has(id(cell))):
        return f"there are none for the cell {cell.name}"
    if w.hr is not None and not _projects(id(cell)):
        return f"there are none for the cell {cell.name} with a projection"
    return None


def refuses_tensors(x: Tensor, w: Weights) -> str | None:
    """Return why there are no native kernels for such tensors, whatever the cell."""
    dtype = x.dtype
    if not x.is_cpu:
        return f"the input is on {x.device}"
    if dtype is not torch.float32 and dtype is not torch.float64:
        return f"there are none for {dtype}"
    for t in w:
        if t is not None and t.dtype is not dtype:
            return f"a weight is {t.dtype} and the input {dtype}"
    return None


@at_compile_time
def _has(cell: int) -> bool:
    return has(object_of(cell))


@at_compile_time
def _projects(cell: int) -> bool:
    return projects(object_of(cell))


# ------------------------------------------------------------------------------------- calls


def forward(call: Call, keep: bool) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.call.Engine` says."""
    return _forward(_Given(call), call.x, keep)


def _forward(given: _Given, x: Tensor, keep: bool) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    y = x.new_empty(given.outputs)
    final = tuple([torch.empty_like(s) for s in given.state])
    size = given.size_of_kept if keep else 0
    kept = memory_for(size, x.dtype) if size else None
    given.run(library().bptt_forward, y, kept, _both(final))
    return y, final, () if kept is None else (kept,)


def written(call: Call, y: Tensor, final: State) -> tuple[bytes, object]:
    """Write a forward pass down, to be run again and again on the same memory.

    Args:
        call: the sequence, of operands that are dense as they are.
        y: where the outputs go.
        final: where the final state goes, other memory than the initial one.

    Returns:
        The argument of the library's ``bptt_forward``, and what must live as long as it is used.
    """
    given, found = _Given(call), list[bytes]()

    def note(call: bytes) -> int:
        found.append(call)
        return 0

    given.run(note, y, None, _both(final))
    return found[0], (given, y, final)


def backward(call: Call, saved: Saved, incoming: Incoming) -> Gradients:
    """Go back through it, as :class:`engines.call.Engine` says."""
    given = _Given(call, (saved.y, *saved.kept))
    dtype, states = given.dtype, call.cell.states
    d_y, d_state, needed, row_norms, d_others = incoming
    layout: tuple[int, ...] = given.outputs[:-1]
    walk, windows = (0, 0, 0, 0), call.windows
    if windows is not None:
        sizes, total = _whole_numbers(windows.steps.sizes)
        layout = (total,)
        indices = dense("the rows of the windows", windows.rows, torch.int64, layout)
        walk = len(sizes), ctypes.addressof(sizes), address(indices), int(call.by_windows)
    d_x: Tensor | None = None
    if needed[0]:
        rows = layout if windows and call.by_windows else given.outputs[:-1]
        d_x = call.x.new_empty((*rows, call.x.shape[-1]))
    if d_y is not None:
        d_y = dense("the output's gradient", d_y, dtype, (*layout, given.outputs[-1]))
    of_rows = (math.prod(layout), given.hidden)
    after = tuple(d if d is None else dense(_OTHERS, d, dtype, of_rows) for d in d_others)
    if d_state is not None:
        for d, s in zip(d_state, given.state, strict=True):
            of_state = s.shape if windows is None else (windows.steps.batch, s.shape[-1])
            room("the final state's gradient", d, dtype, of_state)
    if row_norms is not None:
        row_norms = room("row_norms", row_norms, torch.float64, (math.prod(layout), states))
    of = Weights(*needed[1 + states :])  # type: ignore[arg-type]
    ih, hh, b_ih, b_hh, hr, units = (
        torch.empty_like(p) if p is not None and wanted else None
        for p, wanted in zip((*given.w, given.hr, given.units), of, strict=True)
    )
    given.run(
        library().bptt_backward,
        given.y,
        given.kept,
        (None, None),
        (
            *(given.carry, d_y, *(after or (None,)), *_both(d_state)),
            *(d_x, ih, hh, hr, b_ih, b_hh, units, row_norms),
        ),
        walk,
    )
    return Gradients(d_x, d_state, (ih, hh, b_ih, b_hh, hr, units))


def blocks(call: Call, before: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates before their nonlinearities, as :class:`engines.call.Engine` says."""
    return None


def values(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gates, as :class:`engines.call.Engine` says."""
    G, rows, others = call.cell.gates_h, sum(call.steps.sizes), call.cell.states - 1
    blocks = _blocks(call, kept[0])
    gates, more = blocks[: G * rows], blocks[G * rows : len(blocks) - others * rows]
    return (*gates.unflatten(0, (rows, G)).unbind(1), *more.split(rows))


def other_states(call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the states but h after each step, as :class:`engines.call.Engine` says."""
    rows, others = sum(call.steps.sizes), call.cell.states - 1
    return tuple(_blocks(call, kept[0])[-others * rows :].split(rows)) if others else ()


def _blocks(call: Call, kept: Tensor) -> Tensor:
    """What was kept, block by block, [all, H]: the kernels fill each up to whole vectors."""
    hidden, whole = call.cell.hidden(call.w), 64 // kept.element_size()
    return kept.view(-1, (hidden + whole - 1) // whole * whole)[:, :hidden]


class _Given:
    """What both passes get, checked and dense; alive as long as a call needs its addresses."""

    def __init__(self, call: Call, after: tuple[Tensor, ...] = ()) -> None:
        """``after`` is the output and whatever else a forward pass kept for the backward pass."""
        cell, x, state, w, steps, (carry, resets), *_ = call
        self.cell, self.steps, self.dtype = cell, steps, x.dtype
        self.type = type_of(x.dtype, call.bf16)
        self.sizes, self.rows = _whole_numbers(steps.sizes)
        dtype, states, optional = x.dtype, cell.states, w[2:]
        there = tuple([t is not None for t in optional])
        hidden = state[0].shape[-1] if w.hr is None else cell.hidden(w)
        shape, first = x.shape, state[0].shape
        sizes = _sizes(cell, dtype, shape, first, hidden, steps.batch, self.rows, there, len(after))
        self.hidden, self.inputs, self.outputs, self.size_of_kept, names, shapes = sizes
        more = () if w.hr is None and w.units is None else [t for t in w[4:] if t is not None]
        tensors = (*w[:4], x, *state, *after, *more)
        found: tuple[Any, ...] = all_dense(names, tensors, dtype, shapes)
        self.w, self.x, self.state = found[:4], found[4], found[5 : 5 + states]
        self.units = found[-1] if w.units is not None else None
        self.hr = None if w.hr is None else found[-2 if w.units is not None else -1]
        self.y, self.kept = (*found[5 + states : 5 + states + len(after)], None, None)[:2]
        self.carry = carry
        if carry is not None:
            self.carry = dense("carry", carry, dtype, (self.rows, 1))
        self.resets = resets
        if resets is not None:
            self.resets = dense("resets", resets, torch.bool, (self.rows, 1))

    def run(
        self,
        function: Any,
        y: Tensor,
        kept: Tensor | None,
        final: tuple[Tensor | None, ...],
        backwards: tuple[Tensor | None, ...] = (),
        rest: tuple[int, ...] = _FORWARDS_ALONE,
    ) -> None:
        """Call the library; ``final`` is h_n and c_n, ``backwards`` and ``rest`` what follows."""
        call = _SEQUENCE.pack(
            cells()[self.cell.name],
            self.type,
            threads.allowed(),
            self.steps.reverse,
            len(self.steps.sizes),
            self.steps.batch,
            self.inputs,
            self.hidden,
            self.rows,
            self.outputs[-1],
            ctypes.addressof(self.sizes),
            *addresses(
                *(self.x, *self.w[:2], self.hr, *self.w[2:], self.units, *_both(self.state)),
                *(self.resets, y, kept, *final, *backwards),
            ),
            *rest,
        )
        if function(call) != 0:
            raise MemoryError(
                f"bptt: no memory for the work space of {self.rows} rows of {self.hidden} hidden "
                "units"
            )


class Again:
    """A forward pass like one that has been checked, on other operands that are like its own."""

    def __init__(self, call: Call, has_state: bool) -> None:
        """``has_state`` tells whether an initial state is given each time; if not, it is zero."""
        given = _Given(call)
        self.call = call.emptied()._replace(boundary=Boundary())
        self._like = {**vars(given), "x": None, "w": None, "state": None, "resets": None}
        self._zeros = () if has_state else [s.shape for s in given.state]

    def state(self, x: Tensor, given: State) -> State:
        """Return the initial state."""
        return given or tuple([x.new_zeros(shape) for shape in self._zeros])

    def forward(
        self,
        x: Tensor,
        state: State,
        w: tuple[Tensor | None, ...],
        resets: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """Run it, as :func:`forward`; ``w`` is W_ih, W_hh and the biases."""
        given = _Given.__new__(_Given)
        vars(given).update(self._like, x=x, w=w, state=state, resets=resets)
        return _forward(given, x, keep)


def _both(state: State | None) -> tuple[Tensor | None, ...]:
    """Return h and c, None where there is none."""
    return (*state, None)[:2] if state else (None, None)


@lru_cache(maxsize=256)
def _sizes(
    cell: Cell,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    first: tuple[int, ...],
    hidden: int,
    batch: int,
    rows: int,
    there: tuple[bool, ...],
    after: int,
) -> tuple[int, int, tuple[int, ...], int, tuple[str, ...], tuple[tuple[int, ...] | None, ...]]:
    """Return the numbers of hidden units and inputs, the output's shape, how much is kept, and the
    operands' names and shapes.

    Args:
        cell: the cell.
        dtype: of the call.
        shape: the input's.
        first: the shape of the initial h.
        hidden: the number of hidden units.
        batch: the number of sequences.
        rows: the number of their steps together.
        there: which of the biases, the projection and the weights of units there are.
        after: whether there are an output, 1, and what was kept, 2.

    Raises:
        RuntimeError: the input has not as many rows.
    """
    inputs, outputs, b_ih, b_hh, hr, units = shape[-1], first[-1], *there
    if math.prod(shape) != rows * inputs:
        raise RuntimeError(
            f"bptt: the input must have a row for each step of each sequence, {rows}, got "
            f"{tuple(shape)}"
        )
    gates = cell.gates_h * hidden
    of_state = [(*first[:-2], batch, n) for n in (outputs, *(hidden,) * (cell.states - 1))]
    output = (*shape[:-1], outputs)
    number = cells()[cell.name]
    kept = int(library().bptt_kept(number, type_of(dtype), rows, hidden, hr))
    of_after = (output, (kept,))[:after]
    weights = ((gates, inputs), (gates, outputs), *((gates,) if b else None for b in (b_ih, b_hh)))
    shapes = [*weights, shape, *of_state, *of_after]
    names = [*WEIGHT_NAMES[:4], "the input", *_STATES[: cell.states], *_AFTER[:after]]
    for is_there, name, of in (
        (hr, WEIGHT_NAMES[4], (outputs, hidden)),
        (units, WEIGHT_NAMES[5], (cell.units, hidden)),
    ):
        if is_there:
            names.append(name)
            shapes.append(of)
    return hidden, inputs, output, kept, tuple(names), tuple(shapes)


@lru_cache(maxsize=64)
def _whole_numbers(sizes: tuple[int, ...]) -> tuple[Any, int]:
    """The sizes of steps as an array of C, and their sum.

    Raises:
        RuntimeError: they grow, or are not positive.
    """
    if min(sizes) < 1 or any(map(operator.lt, sizes, sizes[1:])):
        raise RuntimeError(f"bptt: the numbers of sequences at each step must fall, got {sizes}")
    return (ctypes.c_int64 * len(sizes))(*sizes), sum(sizes)
