"""Which engine runs: the first that serves a call, of those that are chosen for the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from bptt._src.engines import kernel_library, looped, native, reference, threads, twin
from bptt._src.engines.call import AnyCall, Engine
from bptt._src.engines.guard import is_watched
from bptt._src.uncompiled import at_compile_time
from bptt.errors import KernelError

VARIABLE = "BPTT_KERNELS"
NAMES = ("auto", "native", "twin", *kernel_library.ISAS)
ENGINES = cast("tuple[Engine, ...]", (native, looped, twin, reference))
"""Every engine there is, in the order in which they are asked."""
_OF_LIBRARY = (native, looped)


@dataclass(frozen=True)
class Backend:
    """What runs a sequence of bptt's modules."""

    name: str
    """``"native"``, or ``"twin"``: the same in plain torch."""
    isa: str | None
    """The vectors that native kernels use: ``"avx512"``, ``"avx2"`` or ``"portable"``."""
    threads: int
    """How many a call may take: torch's number, or for native kernels less."""
    reason: str | None
    """Why they are not native, where they are not."""
    fewer: str | None = None
    """Why a call may take fewer threads than torch, where that is so."""
    bf16: bool = False
    """Whether they have products of bfloat16; if not, those are computed in float32."""

    def __str__(self) -> str:
        """Describe it in one line."""
        number = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        if self.name == "native":
            fewer = f" ({self.fewer})" if self.fewer else ""
            bf16 = " with bf16" if self.bf16 else ""
            return f"native kernels, {self.isa}{bf16}, {number}{fewer}"
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
    ``portable``. Even native kernels leave to the twin what they do not have: other devices, and
    cells whose equations use functions that they have no instruction for (:func:`not_native`
    says which). Under ``torch.autocast("cpu",
    torch.bfloat16)``, and with parameters of bfloat16, they round both sides of each product to
    bfloat16 if the processor multiplies it (``bf16``), and compute in float32 if not.

    A native call takes no more threads than there are processors for them, whatever torch's number:
    those that the process may run on, or what its cgroup's quota of processor time is worth.

    Raises:
        bptt.errors.KernelError: what was asked for by name is not to be had here.

    >>> print(bptt.kernels.backend())  # doctest: +SKIP
    native kernels, avx2, 2 threads
    """
    if not runs_native():
        return Backend("twin", None, torch.get_num_threads(), _choice.reason)
    isa = kernel_library.ISAS[kernel_library.library().bptt_isa_in_use()]
    number, fewer = threads.explained()
    return Backend("native", isa, number, None, fewer, kernel_library.has_bf16())


def runs_native() -> bool:
    """Whether the native kernels are chosen."""
    if _choice.name is None:
        _choose(os.environ.get(VARIABLE, "auto"))
    return _choice.native


def why_no_library() -> str | None:
    """Return why the native kernels are not used; None where they are."""
    return None if runs_native() else f"the native kernels are not used: {_choice.reason}"


def is_chosen_native() -> bool:
    """Whether the native kernels are chosen, for whoever records operations.

    torch.compile asks while it compiles, and compiles again after another choice.
    """
    _make_choice()
    return _choice.native


@at_compile_time
def _make_choice() -> None:
    runs_native()


def engine_for(call: AnyCall, recorded: bool = True) -> Engine:
    """Return the engine that runs a call: the first of the chosen ones that serves it.

    Args:
        call: what is to be run.
        recorded: whether what the engine does may be recorded, operation by operation, for a
            backward pass that is not its own. Where a mode of torch looks on, that takes an engine
            that has no operations in place.

    Raises:
        NotImplementedError: there is none; says why the last one does not serve.
    """
    recorded = recorded and is_watched()
    reason: str | None = None
    for engine in ENGINES if runs_native() else ENGINES[len(_OF_LIBRARY) :]:
        if recorded and not engine.RECORDS:
            continue
        reason = engine.serves(call)
        if reason is None:
            return engine
    raise NotImplementedError(reason)


def not_native(module: nn.Module) -> str | None:
    """Return why the layers of a module do not run on native kernels; None where they do.

    Args:
        module: one of bptt's RNN, GRU, LSTM or Recurrent, or what :func:`bptt.fuse` gives; or a
            model with some inside, for the first that does not.

    Raises:
        TypeError: there is none inside.

    >>> import torch, bptt
    >>> odd = bptt.Cell("ODD", 1, 1, lambda x, h, state, units: (torch.lgamma(x[0] + h[0]),))
    >>> bptt.kernels.not_native(bptt.Recurrent(odd, 3, 4))  # doctest: +SKIP
    'the equations of the cell ODD cannot become a program: aten.lgamma has no instruction'
    """
    found = [m for m in module.modules() if hasattr(m, "not_native") or hasattr(m, "_stepped")]
    if not found:
        raise TypeError(
            "bptt.kernels.not_native: expected bptt's RNN, GRU, LSTM, Recurrent or what bptt.fuse "
            f"gives, or a model with one inside, got {type(module).__name__}"
        )
    if not runs_native():
        return _choice.reason
    return next((why for m in found if (why := _why_not_native(m)) is not None), None)


def _why_not_native(layers: Any) -> str | None:
    if hasattr(layers, "not_native"):  # bptt.fuse
        reason: str | None = layers.not_native()
        return reason
    w, cell = layers._weights(0, False), layers._stepped()
    reason = native.refuses_kind(cell, w.ih, w)
    return None if reason is None else looped.refuses_kind(cell, w.ih, w, False)


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
    before = (_choice.name or "auto", _isa_in_use())
    _choose(name)
    try:
        yield backend()
    finally:
        _choose(before[0])
        if before[1] is not None:
            kernel_library.library().bptt_use_isa(before[1])


def _isa_in_use() -> int | None:
    return kernel_library.library().bptt_isa_in_use() if _choice.native else None


def _choose(name: str) -> None:
    if name not in NAMES:
        raise KernelError(f"{VARIABLE} must be one of {', '.join(NAMES)}, got {name!r}")
    reason = None
    if name == "twin":
        reason = "asked for by name"
    else:
        try:
            found = kernel_library.library()
        except KernelError as e:
            if name != "auto":
                raise
            reason = str(e)
        else:
            there = [n for n in range(len(kernel_library.ISAS)) if found.bptt_has_isa(n)]
            wanted = kernel_library.ISAS.index(name) if name in kernel_library.ISAS else there[-1]
            if found.bptt_use_isa(wanted) != 0:
                raise KernelError(
                    f"{VARIABLE}={name}: this processor or this build has no {name}; it has "
                    f"{', '.join(kernel_library.ISAS[n] for n in there)}"
                )
    _choice.name, _choice.native, _choice.reason = name, reason is None, reason
