"""Tensor files of a run: safetensors, with a digest of all bytes in the header.

The header's metadata has one entry, ``about``, which is JSON: the format, the digest, and
everything that belongs to the tensors. The digest is the SHA-256 of the whole file, computed with
zeros in place of the digest itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from bptt._src.documents import parse_json
from bptt.errors import CheckpointError, needs

with needs("lm"):
    import safetensors
    import safetensors.torch

from bptt._src.atomic import open_plain, write_whole

FORMAT = "bptt-2"
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and everything else as values that JSON can hold."""

_BLANK = "0" * 64  # placeholder for the digest
_MOST_HEADER = 100 << 20  # bytes; the limit of safetensors' readers
_TYPES = {"F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}


class Kind(NamedTuple):
    """A tensor's dtype and shape, known before its numbers are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


Check = Callable[[dict[str, Kind]], None]
"""Raises ValueError if a file does not have the tensors that it should."""


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors by name, and everything else, with a digest.

    Raises:
        OSError: they cannot be written; the previous file is still there.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # A single entry, because the library writes several in an order that varies between processes.
    first = {"format": FORMAT, "sha256": _BLANK}
    header = {"about": json.dumps({**first, **about, **first})}
    data = safetensors.torch.save(tensors, header)
    start = data.index(_BLANK.encode())
    whole = memoryview(data)
    digest = hashlib.sha256(data).hexdigest()
    write_whole(path, whole[:start], digest, whole[start + len(_BLANK) :], follow_links=False)


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Compute the SHA-256 of tensors, whose names are the same every time."""
    found = hashlib.sha256()
    for tensor in tensors.values():
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def read_tensors(path: Path, check: Check) -> Checkpoint:
    """Read a file of :func:`write_tensors`.

    Args:
        path: the file.
        check: raises ValueError if the tensors are not the expected ones, before memory is
            allocated for them.

    Raises:
        CheckpointError: the file is missing, damaged, or has other tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the run was stopped before its first save")
    try:
        with open_plain(path) as file:
            header, kinds, about = _read_header(file)
            check(kinds)
            data = header + file.read()
        if _digest(data, about["sha256"]) != about["sha256"]:
            raise ValueError("its content does not match its sha256")
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, OSError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or e
        raise CheckpointError(
            f"{path} cannot be used: {reason}; restore an earlier copy, or train again"
        ) from None
    return tensors, about


def _read_header(file: BinaryIO) -> tuple[bytes, dict[str, Kind], dict[str, Any]]:
    """Read a header, and check that the file has the length it states."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MOST_HEADER):
        raise ValueError("it is truncated, or not a safetensors file")
    file.seek(0)
    header = file.read(8 + length)
    entries = parse_json(header[8:])
    about = _about(entries)
    kinds = {name: _kind(name, entry) for name, entry in entries.items() if name != "__metadata__"}
    expected = 8 + length + sum(kind.bytes for kind in kinds.values())
    if size != expected:
        raise ValueError(f"it has {size:,} bytes, but its header says {expected:,}")
    return header, kinds, about


def _about(entries: Any) -> dict[str, Any]:
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    about = metadata.get("about") if isinstance(metadata, dict) else None
    about = parse_json(about) if isinstance(about, str) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"it does not have the format {FORMAT}, with a digest, of this bptt")
    if not isinstance(about.get("sha256"), str) or len(about["sha256"]) != len(_BLANK):
        raise ValueError("it has no sha256")
    return about


def _kind(name: str, entry: Any) -> Kind:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{name} has the type {dtype}, which no run uses")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return Kind(_TYPES[dtype], tuple(shape))


def _digest(data: bytes, digest: str) -> str:
    """The SHA-256 of a file, with zeros in place of its own digest."""
    start = data.find(digest.encode())
    if start < 0:
        raise ValueError("it has no sha256")
    found, whole = hashlib.sha256(), memoryview(data)
    for part in (whole[:start], _BLANK.encode(), whole[start + len(_BLANK) :]):
        found.update(part)
    return found.hexdigest()
