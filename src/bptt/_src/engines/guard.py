"""The one door to the native kernels: every address that they get is taken here.

A kernel reads and writes plain memory. So an operand must be exactly a ``torch.Tensor`` or an
``nn.Parameter`` (a subclass may mean anything by its values), on the processor, of the call's dtype
and shape, and with its memory behind it; here it is made dense, and what is a negative view is
computed. Whatever is none of that is refused before its address is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bptt._src.uncompiled import at_compile_time

_LOW = 2**32
PLAIN = frozenset({Tensor, nn.Parameter})
_Shapes = tuple[tuple[int, ...] | None, ...]
has_storage = torch._C._has_storage
_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled


class NotPlain(RuntimeError):
    """An operand that only torch's own operations can read."""


def is_watched() -> bool:
    """Whether a mode has to see each operation: make_fx, FakeTensorMode, a user's own.

    A default device is a mode, too, but sees only what makes tensors out of nothing. A mode that
    counts memory, say, and need not see what a kernel does inside, says so by an attribute
    ``allows_kernels = True``.
    """
    if _modes() and not all(
        getattr(mode, "allows_kernels", False) for mode in _get_current_dispatch_mode_stack()
    ):
        return True
    if not _function_modes():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def only_by_autograd(*tensors: Tensor | None) -> str | None:
    """Return what is asked for that only torch's own operations can do, if anything.

    That is forward mode, a torch.func transform, a batch of gradients, complex numbers, tensors
    that only torch's own operations can read, or an export, which wants operations that it knows.
    """
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is under way"
    if is_exporting():
        return "the operations are exported"
    forward_mode = forward_ad._current_level >= 0
    for t in tensors:
        if t is None:
            continue
        if type(t) not in PLAIN or not has_storage(t):
            return f"a {type(t).__name__} is not plain memory"
        if t.dtype.is_complex:
            return f"{t.dtype} is asked for"
        if forward_mode and forward_ad.unpack_dual(t).tangent is not None:
            return "forward mode is asked for"
    return None


def is_exporting() -> bool:
    """Whether torch records operations to run them elsewhere."""
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return True
    return bool(_is_in_export())


@at_compile_time  # where the compiler of torch 2.8 looks into a function, this is true for it
def _is_in_export() -> bool:
    return torch.compiler.is_exporting()


if not hasattr(torch.compiler, "is_exporting"):  # torch 2.6
    _is_in_export = torch.compiler.is_compiling
_NOTHING = nullcontext()


def dtype_of_autocast(device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast for a device, where it is on."""
    if not torch._C._is_any_autocast_enabled():  # of any device; in most calls it is off
        return None
    kind = device.type
    available = kind == "cpu" or torch.amp.is_autocast_available(kind)
    if available and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off, where it is on."""
    if dtype_of_autocast(device) is None:
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


def all_dense(
    names: Sequence[str], tensors: tuple[Tensor | None, ...], dtype: torch.dtype, shapes: _Shapes
) -> tuple[Tensor | None, ...]:
    """Check operands that are read, and return their values row after row; None stays None.

    What has been accepted as it is, is known again at once by its type, dispatch keys, dtype, shape
    and strides.

    Args:
        names: what the operands are called in an error; may be more.
        tensors: the operands.
        dtype: the dtype that the call needs.
        shapes: the shapes that the call needs; None for those that are None.

    Raises:
        NotPlain: the memory of one of them does not say what its values are.
        RuntimeError: one is somewhere else, or of another dtype or shape, or its memory was freed.
    """
    given = [t for t in tensors if t is not None] if None in shapes else tensors
    known = _known.get((dtype, shapes), ())
    for is_like_those in known:
        if is_like_those(*given):
            return tensors
    found = tuple(
        t if t is None or shape is None else dense(name, t, dtype, shape)
        for name, t, shape in zip(names, tensors, shapes, strict=False)
    )
    if all(a is b for a, b in zip(found, tensors, strict=True)):
        if len(_known) >= _MOST:
            _known.clear()
        _known[dtype, shapes] = (*known[-3:], recognise([t for t in given if t is not None]))
    return found


_known: dict[tuple[torch.dtype, _Shapes], tuple[Callable[..., bool], ...]] = {}
"""Checks that recognise operands like those that were accepted, of the last few kinds."""
_MOST = 256


def recognise(
    tensors: Sequence[Tensor], open_dims: Sequence[int | None] | None = None
) -> Callable[..., bool]:
    """Return a check whether other tensors are like these in all that :func:`dense` looks at.

    That is their types, dispatch keys, dtypes, devices, whether they need a gradient that is to be
    computed, sizes and strides.

    Args:
        tensors: the tensors.
        open_dims: how many of the first dimensions of each may be of any size, and lie anyhow with
            all others; None: none may, and the strides are compared.
    """
    open_dims = [None] * len(tensors) if open_dims is None else open_dims
    sizes: list[Any] = []
    strides: list[Any] = []
    for t, n in zip(tensors, open_dims, strict=True):
        sizes.append([None] * (n or 0) + list(t.shape[n or 0 :]))
        strides.append(list(t.stride()) if n is None else [None] * t.dim())
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    )
    return guards.check


def dense(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Check one operand that is read, as :func:`all_dense`."""
    if type(t) not in PLAIN or t.dtype is not dtype or t.shape != shape or not t.is_cpu:
        _look_closer(name, t, dtype, shape)
    if t.is_neg():
        t = t.resolve_neg()
    if not t.is_contiguous():
        address(t)  # that there is something to copy
        t = t.contiguous()
    return t


def room(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Check an operand that is written to: as :func:`dense`, but it must be so already."""
    if dense(name, t, dtype, shape) is not t:
        raise RuntimeError(f"bptt: {name} must be contiguous to be written to, got {_what(t)}")
    return t


def within(
    name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Check an operand that is written to and lies within a larger memory, with these strides."""
    _look_closer(name, t, dtype, shape)
    if t.is_neg() or any(
        n > 1 and here != expected
        for n, here, expected in zip(shape, t.stride(), strides, strict=True)
    ):
        raise RuntimeError(f"bptt: {name} must have strides {strides}, got {t.stride()}")


def addresses(*tensors: Tensor | None) -> list[int]:
    """Return where the memory of tensors is that were checked or made here; 0 for None."""
    found = []
    for t in tensors:
        if t is None:
            found.append(0)
            continue
        at = t.data_ptr()
        if at < _LOW and t.numel():  # of memory that was freed nothing but the offset is left
            _look_closer("an operand", t, t.dtype, t.shape)
        found.append(at)
    return found


def address(t: Tensor) -> int:
    """Return where the memory of one tensor is, as :func:`addresses`."""
    return addresses(t)[0]


def place(t: Tensor) -> tuple[int, int]:
    """Return what two tensors share if they begin at the same element of the same storage."""
    return t.untyped_storage()._cdata, int(t.storage_offset())


def _look_closer(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse an operand with the reason, or accept one that is part of a larger memory."""
    if type(t) not in PLAIN or not has_storage(t) or t._is_zerotensor():
        raise NotPlain(f"bptt: {name} must be a plain tensor for a native kernel, got {_what(t)}")
    if not t.is_cpu:
        raise RuntimeError(
            f"bptt: the input and weights are not at the same device, found {name} at {t.device} "
            "in a call for the cpu: move it with .to(device)"
        )
    if t.dtype is not dtype or t.shape != shape:
        raise RuntimeError(
            f"bptt: {name} must be {dtype} of shape {tuple(shape)} in this call, got {_what(t)}"
        )
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    needed = (t.storage_offset() + last + 1) * t.element_size() if t.numel() else 0
    if needed > t.untyped_storage().nbytes():
        raise RuntimeError(
            f"bptt: {name} is {_what(t)} but its memory was freed or cut: its storage has "
            f"{t.untyped_storage().nbytes()} of {needed} bytes"
        )


def _what(t: Tensor) -> str:
    kind = "" if type(t) in PLAIN else f"{type(t).__name__} "
    layout = "" if t.layout is torch.strided else f", {t.layout}"
    return f"{kind}{t.dtype} of shape {tuple(t.shape)} on {t.device}{layout}"
