"""Which kernels run: the native ones where they can serve, or what was asked for by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bptt._src.engines import native, threads
from bptt.errors import KernelError

VARIABLE = "BPTT_KERNELS"
NAMES = ("auto", "native", "twin", *native.PATHS)


@dataclass(frozen=True)
class Backend:
    """What runs a sequence of :class:`bptt.RNN`, :class:`bptt.GRU` or :class:`bptt.LSTM`."""

    name: str
    """``"native"``, or ``"twin"``: the same in plain torch."""
    path: str | None
    """The vectors that native kernels use: ``"avx512"``, ``"avx2"`` or ``"portable"``."""
    threads: int
    """How many a call may take: torch's number, or for native kernels less."""
    reason: str | None
    """Why they are not native, where they are not."""
    fewer: str | None = None
    """Why a call may take fewer threads than torch, where that is so."""

    def __str__(self) -> str:
        """Describe it in one line."""
        number = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        if self.name == "native":
            fewer = f" ({self.fewer})" if self.fewer else ""
            return f"native kernels, {self.path}, {number}{fewer}"
        return f"plain torch (twin), {number}: {self.reason}"


@dataclass
class _Choice:
    """What is in force in this process."""

    name: str | None = None
    native: bool = False
    reason: str | None = None


_choice = _Choice()


def backend() -> Backend:
    """Return which kernels run.

    Set ``BPTT_KERNELS`` in the environment to choose: ``auto`` (the native ones where they are
    to be had), ``native``, ``twin``, or the native ones with the vectors ``avx512``, ``avx2`` or
    ``portable``. Even native kernels leave to the twin what they do not have: an LSTM with a
    projection, other dtypes than float32 and float64, other devices.

    A native call takes no more threads than there are processors for them, whatever torch's number:
    those that the process may run on, or what its cgroup's quota of processor time is worth.

    Raises:
        bptt.errors.KernelError: what was asked for by name is not to be had here.

    >>> print(bptt.kernels.backend())  # doctest: +SKIP
    native kernels, avx2, 2 threads
    """
    if not runs_native():
        return Backend("twin", None, torch.get_num_threads(), _choice.reason)
    path = native.PATHS[native.library().bptt_path_in_use()]
    number, fewer = threads.explained()
    return Backend("native", path, number, None, fewer)


def runs_native() -> bool:
    """Whether the native kernels are chosen."""
    if _choice.name is None:
        _choose(os.environ.get(VARIABLE, "auto"))
    return _choice.native


@contextmanager
def use(name: str) -> Iterator[Backend]:
    """Choose the kernels within a ``with`` block, for the whole process.

    Args:
        name: as in ``BPTT_KERNELS``, see :func:`backend`.

    Raises:
        bptt.errors.KernelError: they are not to be had here.

    >>> import bptt
    >>> with bptt.kernels.use("twin") as backend:
    ...     backend.name
    'twin'
    """
    runs_native()
    before = (_choice.name or "auto", _path_in_use())
    _choose(name)
    try:
        yield backend()
    finally:
        _choose(before[0])
        if before[1] is not None:
            native.library().bptt_use_path(before[1])


def _path_in_use() -> int | None:
    return native.library().bptt_path_in_use() if _choice.native else None


def _choose(name: str) -> None:
    if name not in NAMES:
        raise KernelError(f"{VARIABLE} must be one of {', '.join(NAMES)}, got {name!r}")
    reason = None
    if name == "twin":
        reason = "asked for by name"
    else:
        try:
            library = native.library()
        except KernelError as e:
            if name != "auto":
                raise
            reason = str(e)
        else:
            paths = [n for n, p in enumerate(native.PATHS) if library.bptt_has_path(n)]
            wanted = native.PATHS.index(name) if name in native.PATHS else paths[-1]
            if library.bptt_use_path(wanted) != 0:
                raise KernelError(
                    f"{VARIABLE}={name}: this processor or this build has no {name}; it has "
                    f"{', '.join(native.PATHS[p] for p in paths)}"
                )
    _choice.name, _choice.native, _choice.reason = name, reason is None, reason
