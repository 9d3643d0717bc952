"""The kernel library: found, loaded and checked, and what it says of itself.

The C++ is in ``csrc``; ``csrc/bptt_kernels.h`` says what each field of a call means. The library
knows neither torch nor Python: it gets pointers, and torch's own threads.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache

import torch
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.find import library_path
from bptt._src.engines.guard import address, dense
from bptt.cells import Cell
from bptt.errors import KernelError

INTERFACE = 16
ISAS = ("portable", "avx2", "avx512")
"""The kinds of vectors that there are kernels for, the narrowest first."""
_FLOAT, _DOUBLE, _BF16 = range(3)


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
    found.bptt_kept.argtypes = [ctypes.c_int64] * 5
    found.bptt_has_type.argtypes = [ctypes.c_int64]
    found.bptt_cells.restype = ctypes.c_int64
    found.bptt_cell_name.restype = ctypes.c_char_p
    found.bptt_cell_name.argtypes = [ctypes.c_int64]
    found.bptt_cell_sizes.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    found.bptt_instruction_name.restype = ctypes.c_char_p
    found.bptt_instruction_name.argtypes = [ctypes.c_int64]
    for name in (
        "forward",
        "backward",
        "run_loop",
        "multiply",
        "cross_entropy",
        "flow_back",
        "run_scan",
    ):
        getattr(found, f"bptt_{name}").argtypes = [ctypes.c_char_p]
    found.bptt_peak.restype = ctypes.c_double
    found.bptt_peak.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_double]
    found.bptt_function.argtypes = [
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    _share_threads(found)
    return found


def type_of(dtype: torch.dtype, bf16: bool = False) -> int:
    """Return what the library computes a call in, as its ``enum bptt_type``.

    Args:
        dtype: float32 or float64.
        bf16: whether float32 may have products of bfloat16, if the library has them.
    """
    if dtype is torch.float64:
        return _DOUBLE
    return _BF16 if bf16 and has_bf16() else _FLOAT


def has_bf16() -> bool:
    """Whether the kernels in use have products of bfloat16."""
    return bool(library().bptt_has_type(_BF16))


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


def fma_peak(number: int, seconds: float, bf16: bool = False) -> float:
    """Measure how many fused multiply-adds the processor does, in GFLOP/s.

    Args:
        number: how many threads, each on registers alone.
        seconds: for how long.
        bf16: whether of bfloat16, in place of float32; only where :func:`has_bf16`.

    Raises:
        KernelError: there is no native library, or it has no products of bfloat16.
    """
    if bf16 and not has_bf16():
        raise KernelError("the kernels in use have no products of bfloat16")
    return float(library().bptt_peak(_BF16 if bf16 else _FLOAT, number, seconds))


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


@lru_cache(maxsize=64)
def has(cell: Cell) -> bool:
    """Whether the library has this cell; it has every one that says so.

    Raises:
        KernelError: there is none of this name, or it has other sizes, so that the library would
            read other memory.
    """
    if cell.name not in cells():
        raise KernelError(
            f"the native kernels have no cell {cell.name}: compile them again, or leave "
            "is_native out"
        )
    sizes = (ctypes.c_int64 * 4)()
    library().bptt_cell_sizes(cells()[cell.name], sizes)
    gates, _, states, units = sizes
    expected = (cell.gates_x, cell.gates_h, cell.states, cell.units)
    if (gates, gates, states, units) != expected:
        raise KernelError(
            f"the cell {cell.name} has {expected} gates of x and h, states and weights of a unit, "
            f"and the native kernels have {(gates, gates, states, units)}: compile them again, or "
            "leave is_native out"
        )
    return True


@lru_cache(maxsize=64)
def projects(cell: Cell) -> bool:
    """Whether the library has this cell with a projection of what the equations call h."""
    return bool(library().bptt_kept(cells()[cell.name], _FLOAT, 1, 1, 1) > 0)
