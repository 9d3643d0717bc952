"""The native kernels: the library, and a whole sequence of one layer in one call of it.

The C++ is in ``csrc``; ``csrc/bptt_kernels.h`` says what each field of a call means. The library
knows neither torch nor Python: it gets pointers, and torch's own threads.
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

from bptt._src.engines import threads
from bptt._src.engines.engine import Gradients
from bptt._src.engines.find import library_path
from bptt._src.engines.guard import address, addresses, all_dense, dense, room
from bptt._src.engines.windows import Windows
from bptt._src.steps import Crossing, Steps
from bptt.cells import WEIGHT_NAMES, Cell, State, Weights
from bptt.errors import KernelError

INTERFACE = 6
NO_CELL = -2
PATHS = ("portable", "avx2", "avx512")
"""The kinds of vectors that there are kernels for, the narrowest first."""


_STATES = ("the initial h", "the initial c")
_AFTER = ("the output", "what the forward pass kept")

# The fields of a bptt_sequence and a bptt_readout, in order; an address of 0 is none.
_SEQUENCE = struct.Struct("=39q")
_READOUT = struct.Struct("=14q")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Load the library.

    Raises:
        KernelError: it is not there, or is of another version; says why and what to do.
    """
    try:
        path = library_path()
        found = ctypes.CDLL(str(path))
    except OSError as e:
        raise KernelError(f"the native kernels cannot be used: {e}") from None
    if struct.calcsize("P") != 8:
        raise KernelError("the native kernels need a 64-bit Python")
    if found.bptt_interface() != INTERFACE:
        raise KernelError(
            f"{path} is of another version of bptt (interface {found.bptt_interface()}, expected "
            f"{INTERFACE}): install bptt again"
        )
    found.bptt_kept.restype = ctypes.c_int64
    found.bptt_kept.argtypes = [ctypes.c_int64] * 4
    found.bptt_cells.restype = ctypes.c_int64
    found.bptt_cell_name.restype = ctypes.c_char_p
    found.bptt_cell_name.argtypes = [ctypes.c_int64]
    found.bptt_cell_sizes.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    for name in ("forward", "backward", "cross_entropy", "flow_back"):
        getattr(found, f"bptt_{name}").argtypes = [ctypes.c_char_p]
    found.bptt_peak.restype = ctypes.c_double
    found.bptt_peak.argtypes = [ctypes.c_int, ctypes.c_double]
    found.bptt_function.argtypes = [
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    _share_threads(found)
    return found


@lru_cache(maxsize=1)
def cells() -> dict[str, int]:
    """Return the numbers that the library has for the cells, by name."""
    names = map(library().bptt_cell_name, range(library().bptt_cells()))
    return {name.decode(): number for number, name in enumerate(names)}


def _share_threads(found: ctypes.CDLL) -> None:
    """Make the library run on the threads of torch's own OpenMP, so that the two never compete.

    Where there is none of GNU's kind, as on macOS, every call runs on one thread.
    """
    here = ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if all(hasattr(here, name) for name in names):
        addresses = [ctypes.cast(getattr(here, name), ctypes.c_void_p) for name in names]
        found.bptt_use_threads.argtypes = [ctypes.c_void_p] * 3
        found.bptt_use_threads(*addresses)
        threads.shared()


def fma_peak(team: int, seconds: float) -> float:
    """Measure how many fused multiply-adds the processor does, in float32 and GFLOP/s.

    Args:
        team: how many threads, each on registers alone.
        seconds: for how long.

    Raises:
        KernelError: there is no native library.
    """
    return float(library().bptt_peak(team, seconds))


def elementwise(name: str, x: Tensor) -> Tensor:
    """Apply the kernels' own exp, tanh or sigmoid, for the tests of their precision.

    Args:
        name: ``"exp"``, ``"tanh"`` or ``"sigmoid"``.
        x: float32 or float64, contiguous.
    """
    x = dense("x", x, x.dtype, x.shape)
    y = torch.empty_like(x)
    which = ("exp", "tanh", "sigmoid").index(name)
    library().bptt_function(which, x.dtype == torch.float64, x.numel(), address(x), address(y))
    return y


def serves(cell: Cell, x: Tensor, w: Weights) -> bool:
    """Whether there is a kernel for this: on the processor, float32 or float64, no projection."""
    dtype = x.dtype
    return (
        x.is_cpu
        and (dtype is torch.float32 or dtype is torch.float64)
        and w.hr is None
        and x.numel() > 0
        and cell.is_native
        and _has(cell)
        and w.ih.dtype is dtype
        and w.hh.dtype is dtype
        and (w.b_ih is None or w.b_ih.dtype is dtype)
        and (w.b_hh is None or w.b_hh.dtype is dtype)
        and (w.units is None or w.units.dtype is dtype)
    )


@lru_cache(maxsize=64)
def _has(cell: Cell) -> bool:
    """Whether the library has this cell; it has every one that says so.

    Raises:
        KernelError: there is none of this name, or it has other sizes, so that the library would
            read other memory.
    """
    if cell.name not in cells():
        raise KernelError(f"the native kernels have no cell {cell.name}: leave is_native out")
    sizes = (ctypes.c_int64 * 4)()
    library().bptt_cell_sizes(cells()[cell.name], sizes)
    gates, _, states, units = sizes
    expected = (cell.gates_x, cell.gates_h, cell.states, cell.units)
    if (gates, gates, states, units) != expected:
        raise KernelError(
            f"the cell {cell.name} has {expected} gates of x and h, states and weights of a unit, "
            f"and the native kernels have {(gates, gates, states, units)}: leave is_native out"
        )
    return True


# ------------------------------------------------------------------------------------- calls


def forward(
    cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing, keep: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`engines.engine.Engine` says."""
    given = _Given(cell, x, state, w, steps, at)
    y = x.new_empty(given.outputs)
    final = tuple([torch.empty_like(s) for s in given.state])
    size = _size_of_kept(cell.name, x.dtype, given.rows, given.hidden) if keep else 0
    kept = x.new_empty(size) if size else None
    given.run(library().bptt_forward, y, kept, *_both(final), *(0,) * 16)
    return y, final, () if kept is None else (kept,)


def backward(
    cell: Cell,
    x: Tensor,
    state: State,
    w: Weights,
    steps: Steps,
    at: Crossing,
    y: Tensor,
    kept: tuple[Tensor, ...],
    d_y: Tensor | None,
    d_state: State | None,
    needed: tuple[bool, ...],
    windows: Windows | None = None,
    by_windows: bool = False,
    row_norms: Tensor | None = None,
    norms: Tensor | None = None,
) -> Gradients:
    """Go back through it, as :class:`engines.engine.Engine` says.

    Besides, ``norms``, [T] float64, is filled with ‖∂L/∂h_t‖ over the batch, of each step in the
    order gone through: the last one first, unless the sequence is reversed.
    """
    given = _Given(cell, x, state, w, steps, at, (y, *kept))
    dtype, hidden = given.dtype, given.hidden
    layout: tuple[int, ...] = given.outputs[:-1]
    d_x: Tensor | None = None
    walk, walked = (0, 0, 0, 0), steps
    if windows is not None:
        walked = windows.steps
        sizes, total = _whole_numbers(walked.sizes)
        layout = (total,)
        indices = dense("the rows of the windows", windows.rows, torch.int64, layout)
        walk = len(sizes), ctypes.addressof(sizes), address(indices), int(by_windows)
    if needed[0]:
        d_x = x.new_empty(
            (*(layout if windows and by_windows else given.outputs[:-1]), x.shape[-1])
        )
    if d_y is not None:
        d_y = dense("the output's gradient", d_y, dtype, (*layout, hidden))
    if d_state is not None:
        of_state = given.state[0].shape if windows is None else (walked.batch, hidden)
        for d in d_state:
            room("the final state's gradient", d, dtype, of_state)
    if row_norms is not None:
        row_norms = room("row_norms", row_norms, torch.float64, (math.prod(layout), cell.states))
    if norms is not None:
        norms = room("norms", norms, torch.float64, (len(walked.sizes),))
    of = Weights(*needed[1:])  # type: ignore[arg-type]
    ih, hh, b_ih, b_hh, units = (
        torch.empty_like(p) if p is not None and wanted else None
        for p, wanted in zip((*given.w, given.units), (*of[:4], of.units), strict=True)
    )
    given.run(
        library().bptt_backward,
        given.y,
        given.kept,
        *(0, 0),  # h_n, c_n
        *addresses(given.carry, d_y),
        *_both(d_state),
        *addresses(d_x, ih, hh, b_ih, b_hh, units, norms, row_norms),
        *walk,
    )
    return Gradients(d_x, d_state, (ih, hh, b_ih, b_hh, None, units))


def unpack(cell: Cell, kept: tuple[Tensor, ...], hidden: int) -> tuple[Tensor, ...]:
    """Return what a forward pass kept, as :class:`engines.engine.Engine` says."""
    if not kept:
        return ()
    whole = 64 // kept[0].element_size()
    padded = (hidden + whole - 1) // whole * whole
    rows = kept[0].numel() // ((cell.gates_h + 1) * padded)
    gates, more = kept[0].view(-1, padded)[:, :hidden].split([cell.gates_h * rows, rows])
    return *gates.unflatten(0, (rows, cell.gates_h)).unbind(1), more


class _Given:
    """What both passes get, checked and dense; alive as long as a call needs its addresses."""

    def __init__(
        self,
        cell: Cell,
        x: Tensor,
        state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        after: tuple[Tensor, ...] = (),
    ) -> None:
        """``after`` is the output and whatever else a forward pass kept for the backward pass."""
        self.cell, self.steps, self.dtype = cell, steps, x.dtype
        self.sizes, self.rows = _whole_numbers(steps.sizes)
        dtype, states = x.dtype, cell.states
        shape, first, biased = x.shape, state[0].shape, (w.b_ih is not None, w.b_hh is not None)
        sizes = _sizes(cell, dtype, shape, first, steps.batch, self.rows, biased, len(after))
        self.hidden, self.inputs, self.outputs, names, shapes = sizes
        units = () if w.units is None else (w.units,)
        tensors = (*w[:4], x, *state, *after, *units)
        found: tuple[Any, ...] = all_dense(names, tensors, dtype, shapes)
        self.w, self.x, self.state = found[:4], found[4], found[5 : 5 + states]
        self.units = found[-1] if units else None
        self.y, self.kept = (*found[5 + states : 5 + states + len(after)], None, None)[:2]
        self.carry = at.carry
        if at.carry is not None:
            self.carry = dense("carry", at.carry, dtype, (self.rows, 1))
        self.resets = at.resets
        if at.resets is not None:
            self.resets = dense("resets", at.resets, torch.bool, (self.rows, 1))

    def run(self, function: Any, y: Tensor, kept: Tensor | None, *results: int) -> None:
        """Call the library; the results are the fields of bptt_sequence from h_n on."""
        call = _SEQUENCE.pack(
            cells()[self.cell.name],
            self.dtype is torch.float64,
            threads.allowed(),
            self.steps.reverse,
            len(self.steps.sizes),
            self.steps.batch,
            self.inputs,
            self.hidden,
            self.rows,
            ctypes.addressof(self.sizes),
            *addresses(self.x, *self.w, self.units),
            *_both(self.state),
            *addresses(self.resets, y, kept),
            *results,
        )
        error = function(call)
        if error == NO_CELL:
            raise KernelError(f"the native kernels have no cell {self.cell.name}")
        if error:
            raise MemoryError(
                f"bptt: no memory for the work space of {self.rows} rows of {self.hidden} hidden "
                "units"
            )


def _both(state: State | None) -> tuple[int, ...]:
    """Where h and c are."""
    return (*addresses(*state), 0)[:2] if state else (0, 0)


@lru_cache(maxsize=256)
def _sizes(
    cell: Cell,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    first: tuple[int, ...],
    batch: int,
    rows: int,
    biased: tuple[bool, bool],
    after: int,
) -> tuple[int, int, tuple[int, ...], tuple[str, ...], tuple[tuple[int, ...] | None, ...]]:
    """Return the numbers of hidden units and inputs, the output's shape, and the operands' shapes.

    Args:
        cell: the cell.
        dtype: of the call.
        shape: the input's.
        first: the shape of the initial h.
        batch: the number of sequences.
        rows: the number of their steps together.
        biased: which of the biases there are.
        after: whether there are an output, 1, and what was kept, 2.

    Raises:
        RuntimeError: the input has not as many rows.
    """
    hidden, inputs = first[-1], shape[-1]
    if math.prod(shape) != rows * inputs:
        raise RuntimeError(
            f"bptt: the input must have a row for each step of each sequence, {rows}, got "
            f"{tuple(shape)}"
        )
    gates, of_state = cell.gates_h * hidden, (*first[:-2], batch, hidden)
    outputs = (*shape[:-1], hidden)
    biases = [(gates,) if there else None for there in biased]
    kept = (_size_of_kept(cell.name, dtype, rows, hidden),) if after == 2 else ()
    of_after = (outputs, kept)[:after]
    weights = ((gates, inputs), (gates, hidden), *biases)
    units = ((cell.units, hidden),) if cell.units else ()
    shapes = (*weights, shape, *(of_state,) * cell.states, *of_after, *units)
    names = (*WEIGHT_NAMES[:4], "the input", *_STATES[: cell.states], *_AFTER[:after])
    return hidden, inputs, outputs, (*names, WEIGHT_NAMES[-1]), shapes


@lru_cache(maxsize=64)
def _size_of_kept(name: str, dtype: torch.dtype, rows: int, hidden: int) -> int:
    return int(library().bptt_kept(cells()[name], dtype == torch.float64, rows, hidden))


@lru_cache(maxsize=64)
def _whole_numbers(sizes: tuple[int, ...]) -> tuple[Any, int]:
    """The sizes of steps as an array of C, and their sum.

    Raises:
        RuntimeError: they grow, or are not positive.
    """
    if min(sizes) < 1 or any(map(operator.lt, sizes, sizes[1:])):
        raise RuntimeError(f"bptt: the numbers of sequences at each step must fall, got {sizes}")
    return (ctypes.c_int64 * len(sizes))(*sizes), sum(sizes)


# ----------------------------------------------------------------------------------- readout


def serves_readout(hidden: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for :func:`cross_entropy`."""
    return (
        hidden.is_cpu
        and hidden.dtype in (torch.float32, torch.float64)
        and hidden.numel() > 0
        and weight.numel() > 0
    )


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    factors: Tensor | None,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute a readout's losses and their gradients: see its twin, ``bptt.losses.fused``."""
    (N, H), V, dtype = hidden.shape, len(weight), hidden.dtype
    given = (
        dense("hidden", hidden, dtype, (N, H)),
        dense("weight", weight, dtype, (V, H)),
        None if bias is None else dense("bias", bias, dtype, (V,)),
        dense("targets", targets, torch.int64, (N,)),
        None if factors is None else dense("the losses' factors", factors, dtype, (N,)),
    )
    losses = hidden.new_empty(N)
    found = [
        t.new_empty(t.shape) if t is not None and wanted else None
        for t, wanted in zip((hidden, weight, bias), needed, strict=True)
    ]
    call = _READOUT.pack(
        dtype is torch.float64,
        threads.allowed(),
        *(N, H, V),
        *addresses(*given, losses, *found),
    )
    if library().bptt_cross_entropy(call) != 0:
        raise MemoryError(f"bptt: no memory for the work space of {V} labels")
    return losses, found[0], found[1], found[2]
