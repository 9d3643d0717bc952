"""The native kernels: the library, and a whole sequence of one layer in one call of it.

The C++ is in ``csrc``; ``csrc/bptt_kernels.h`` says what each field of a call means. The library
knows neither torch nor Python: it gets pointers, and torch's own threads.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bptt.cells import Cell, State, Weights
from bptt.errors import KernelError
from bptt.kernels import threads
from bptt.kernels.find import library_path
from bptt.kernels.passes import Crossing, Gradients
from bptt.kernels.steps import Steps
from bptt.kernels.windows import Windows

INTERFACE = 5
CELLS = {"RNN_TANH": 0, "RNN_RELU": 1, "RNN_SIGMOID": 2, "GRU": 3, "LSTM": 4}
PATHS = ("portable", "avx2", "avx512")
"""The kinds of vectors that there are kernels for, the narrowest first."""


# The fields of a bptt_sequence and a bptt_readout, in order; an address of 0 is none.
_SEQUENCE = struct.Struct("=37q")
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


def _share_threads(found: ctypes.CDLL) -> None:
    """Let the library run on the threads of torch's own OpenMP, so that the two never compete.

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
    y = torch.empty_like(x)
    which = ("exp", "tanh", "sigmoid").index(name)
    library().bptt_function(which, x.dtype == torch.float64, x.numel(), x.data_ptr(), y.data_ptr())
    return y


def serves(cell: Cell, x: Tensor, w: Weights) -> bool:
    """Whether there is a kernel for this: on the processor, float32 or float64, no projection."""
    dtype = x.dtype
    return (
        x.is_cpu
        and (dtype is torch.float32 or dtype is torch.float64)
        and w.hr is None
        and x.numel() > 0
        and cell.mode in CELLS
        and w.ih.dtype is dtype
        and w.hh.dtype is dtype
        and (w.b_ih is None or w.b_ih.dtype is dtype)
        and (w.b_hh is None or w.b_hh.dtype is dtype)
    )


# ------------------------------------------------------------------------------------- calls


def forward(
    cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing, keep: bool
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a sequence, as :class:`bptt.kernels.passes.Engine` says."""
    given = _Given(cell, x, state, w, steps, at)
    H = w.hh.shape[1]
    y = x.new_empty((*x.shape[:-1], H))
    final = tuple(map(torch.empty_like, given.state))
    size = _size_of_kept(cell.mode, x.dtype, y.numel() // H, H) if keep else 0
    kept = x.new_empty(size) if size else None
    h_n, c_n = _both(final)
    given.run(library().bptt_forward, y, kept, h_n, c_n, *(0,) * 15)
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
    """Go back through it, as :class:`bptt.kernels.passes.Engine` says.

    Besides, ``norms``, [T] float64, is filled with ‖∂L/∂h_t‖ over the batch, of each step in the
    order gone through: the last one first, unless the sequence is reversed.
    """
    given = _Given(cell, x, state, w, steps, at)
    d_y = None if d_y is None else d_y.contiguous()
    d_x: Tensor | None = None
    if needed[0] and windows and by_windows:
        d_x = x.new_empty(len(windows.rows), x.shape[-1])
    elif needed[0]:
        d_x = torch.empty_like(given.x)
    ih, hh, b_ih, b_hh = (
        torch.empty_like(p) if p is not None and wanted else None
        for p, wanted in zip(given.w, needed[1:], strict=False)
    )
    walk = (0, 0, 0, 0)
    if windows is not None:
        sizes = _whole_numbers(windows.steps.sizes)
        walk = len(sizes), ctypes.addressof(sizes), windows.rows.data_ptr(), int(by_windows)
    given.run(
        library().bptt_backward,
        y,
        kept[0] if kept else None,
        *(0, 0),  # h_n, c_n
        address(given.carry),
        address(d_y),
        *_both(d_state),
        address(d_x),
        address(ih),
        address(hh),
        address(b_ih),
        address(b_hh),
        address(norms),
        address(row_norms),
        *walk,
    )
    return Gradients(d_x, d_state, Weights(ih, hh, b_ih, b_hh))  # type: ignore[arg-type]


def unpack(cell: Cell, kept: tuple[Tensor, ...], hidden: int) -> tuple[Tensor, ...]:
    """Give what a forward pass kept, as :class:`bptt.kernels.passes.Engine` says."""
    if not kept:
        return ()
    whole = 64 // kept[0].element_size()
    padded = (hidden + whole - 1) // whole * whole
    rows = kept[0].numel() // ((cell.gates + 1) * padded)
    gates, more = kept[0].view(-1, padded)[:, :hidden].split([cell.gates * rows, rows])
    return *gates.unflatten(0, (rows, cell.gates)).unbind(1), more


class _Given:
    """What both passes get, dense; alive as long as a call needs its addresses."""

    def __init__(
        self, cell: Cell, x: Tensor, state: State, w: Weights, steps: Steps, at: Crossing
    ) -> None:
        self.cell, self.steps = cell, steps
        self.x = x.contiguous()
        self.state = tuple(s.contiguous() for s in state)
        self.w = [None if p is None else p.contiguous() for p in w[:4]]
        self.resets = None if at.resets is None else at.resets.contiguous()
        self.carry = None if at.carry is None else at.carry.contiguous()
        self.sizes = _whole_numbers(steps.sizes)

    def run(self, function: Any, y: Tensor, kept: Tensor | None, *results: int) -> None:
        """Call the library; the results are the fields of bptt_sequence from h_n on."""
        inputs, H = self.x.shape[-1], y.shape[-1]
        ih, hh, b_ih, b_hh = self.w
        call = _SEQUENCE.pack(
            CELLS[self.cell.mode],
            self.x.dtype is torch.float64,
            threads.allowed(),
            self.steps.reverse,
            len(self.steps.sizes),
            self.steps.batch,
            inputs,
            H,
            y.numel() // H,
            ctypes.addressof(self.sizes),
            self.x.data_ptr(),
            address(ih),
            address(hh),
            address(b_ih),
            address(b_hh),
            *_both(self.state),
            address(self.resets),
            y.data_ptr(),
            address(kept),
            *results,
        )
        if function(call) != 0:
            raise MemoryError(
                f"bptt: no memory for the work space of {y.numel() // H} rows of {H} hidden units"
            )


def address(t: Tensor | None) -> int:
    """Where a tensor is, or 0 for none."""
    return 0 if t is None else t.data_ptr()


def _both(state: State | None) -> tuple[int, int]:
    """Where h and c are."""
    if not state:
        return 0, 0
    return state[0].data_ptr(), state[1].data_ptr() if len(state) == 2 else 0


@lru_cache(maxsize=64)
def _size_of_kept(mode: str, dtype: torch.dtype, rows: int, hidden: int) -> int:
    return int(library().bptt_kept(CELLS[mode], dtype == torch.float64, rows, hidden))


@lru_cache(maxsize=64)
def _whole_numbers(sizes: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


# ----------------------------------------------------------------------------------- readout


def serves_readout(hidden: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for :func:`cross_entropy`."""
    return (
        hidden.device.type == "cpu"
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
    given = [
        None if t is None else t.contiguous() for t in (hidden, weight, bias, targets, factors)
    ]
    losses = hidden.new_empty(len(hidden))
    found = [
        t.new_empty(t.shape) if t is not None and wanted else None
        for t, wanted in zip((hidden, weight, bias), needed, strict=True)
    ]
    call = _READOUT.pack(
        hidden.dtype == torch.float64,
        threads.allowed(),
        len(hidden),
        hidden.shape[1],
        len(weight),
        *map(address, given),
        losses.data_ptr(),
        *map(address, found),
    )
    if library().bptt_cross_entropy(call) != 0:
        raise MemoryError(f"bptt: no memory for the work space of {len(weight)} labels")
    return losses, found[0], found[1], found[2]
