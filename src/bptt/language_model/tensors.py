"""Tensors in a run: files of safetensors, with a digest of all their bytes in the header.

The header's metadata has one entry, ``about``, which is JSON: the format, the digest, and all else
that belongs to the tensors. The digest is SHA-256 of the whole file with zeros in its own place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bptt.documents import parse
from bptt.errors import CheckpointError
from bptt.files import open_plain, write_whole

FORMAT = "bptt-2"
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and all else, as JSON can hold it."""

_BLANK = "0" * 64  # where the digest will be
_MOST_HEADER = 100 << 20  # bytes; no reader of safetensors takes more
_TYPES = {"F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}


class Kind(NamedTuple):
    """What a tensor is before its numbers are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


Check = Callable[[dict[str, Kind]], None]
"""Raises ValueError where a file has not the tensors that it should have."""


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors by name, and all else, with a digest.

    Raises:
        OSError: they cannot be written; what was there before is still there.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # One entry: the library writes several in an order that differs from process to process.
    first = {"format": FORMAT, "sha256": _BLANK}
    header = {"about": json.dumps({**first, **about, **first})}
    data = safetensors.torch.save(tensors, header)
    start = data.index(_BLANK.encode())
    whole = memoryview(data)
    digest = hashlib.sha256(data).hexdigest()
    write_whole(path, whole[:start], digest, whole[start + len(_BLANK) :], follow_links=False)


def read_tensors(path: Path, check: Check) -> Checkpoint:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: the file.
        check: is asked whether these tensors are wanted, before memory is taken for them.

    Raises:
        CheckpointError: the file is missing, damaged, or has other tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the run was stopped before it was first saved")
    try:
        with open_plain(path) as file:
            header, kinds, about = _read_header(file)
            check(kinds)
            data = header + file.read()
        if _digest(data, about["sha256"]) != about["sha256"]:
            raise ValueError("its sha256 is that of another content")
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, OSError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or e
        raise CheckpointError(
            f"{path} cannot be used: {reason}; put back a copy from before, or train again"
        ) from None
    return tensors, about


def _read_header(file: BinaryIO) -> tuple[bytes, dict[str, Kind], dict[str, Any]]:
    """Read a header, and see that the file is as long as it says."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MOST_HEADER):
        raise ValueError("it is cut short, or no file of safetensors")
    file.seek(0)
    header = file.read(8 + length)
    entries = parse(header[8:])
    about = _about(entries)
    kinds = {name: _kind(name, entry) for name, entry in entries.items() if name != "__metadata__"}
    expected = 8 + length + sum(kind.bytes for kind in kinds.values())
    if size != expected:
        raise ValueError(f"it has {size:,} bytes where its header says {expected:,}")
    return header, kinds, about


def _about(entries: Any) -> dict[str, Any]:
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    about = metadata.get("about") if isinstance(metadata, dict) else None
    about = parse(about) if isinstance(about, str) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"it is not of the format {FORMAT}, with a digest, that this bptt writes")
    if not isinstance(about.get("sha256"), str) or len(about["sha256"]) != len(_BLANK):
        raise ValueError("it has no sha256")
    return about


def _kind(name: str, entry: Any) -> Kind:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{name} is of the type {dtype}, and no run holds such numbers")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return Kind(_TYPES[dtype], tuple(shape))


def _digest(data: bytes, digest: str) -> str:
    """The SHA-256 of a file, with zeros where its own digest is."""
    start = data.find(digest.encode())
    if start < 0:
        raise ValueError("it has no sha256")
    found, whole = hashlib.sha256(), memoryview(data)
    for part in (whole[:start], _BLANK.encode(), whole[start + len(_BLANK) :]):
        found.update(part)
    return found.hexdigest()
