"""Large memory that is used again by the next call.

Allocators give blocks of more than 32 MB back to the system at once and get them anew at the next
call, which costs a page fault for every 4 kB of them. Such a block of a forward pass is kept here
for the next one, on huge pages where the system has them for the asking.
"""

from __future__ import annotations

import mmap
import sys
import threading

import torch

LARGE = 2**25
"""Bytes from which on a block is kept; smaller ones are kept by the allocator."""

LIMIT = 2**29
"""Bytes of all blocks that are kept, in use or not; what goes beyond is the allocator's."""

_blocks: list[mmap.mmap] = []
_lock = threading.Lock()
_IS_LINUX = sys.platform == "linux"


def memory_for(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return memory for so many numbers on the CPU, with any values.

    It is used again when nothing refers to it any more: no tensor, no view, no graph.
    """
    needed = size * dtype.itemsize
    if needed < LARGE or not _IS_LINUX:
        return torch.empty(size, dtype=dtype, device="cpu")
    with _lock:
        block = _idle(needed) or _new(needed)
        if block is None:
            return torch.empty(size, dtype=dtype, device="cpu")
        return torch.frombuffer(block, dtype=dtype, count=size)


def held() -> int:
    """Return how many bytes are kept, in use or not."""
    return sum(map(len, _blocks))


def _is_idle(number: int) -> bool:
    return sys.getrefcount(_blocks[number]) == 2  # the list's, and that of the question


def _idle(needed: int) -> mmap.mmap | None:
    """The smallest idle block that fits, unless most of it would not be used."""
    lengths = list(map(len, _blocks))
    fitting = [n for n, size in enumerate(lengths) if needed <= size <= 2 * needed and _is_idle(n)]
    return _blocks[min(fitting, key=lengths.__getitem__)] if fitting else None


def _new(needed: int) -> mmap.mmap | None:
    """A new block, in the place of idle ones if there is no room beside them."""
    for number in reversed(range(len(_blocks))):
        if held() + needed > LIMIT and _is_idle(number):
            del _blocks[number]
    if held() + needed > LIMIT:
        return None
    try:
        block = mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # the allocator says how much it was, and of what there is none
        return None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    _blocks.append(block)
    return block
