"""A linear recurrence whose units are independent, h_t = a_t ⊙ h_{t-1} + b_t: ``csrc/scan.h``."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.backend import runs_native
from bptt._src.engines.guard import address, dense, is_watched, only_by_autograd
from bptt._src.engines.kernel_library import library, type_of

_SCAN = struct.Struct("=10q")
_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def scan(a: Tensor, b: Tensor, h_0: Tensor | None = None) -> Tensor:
    """Compute h_t = a_t ⊙ h_{t-1} + b_t for all steps.

    Natively on a CPU: units and sequences side by side, shared out among the threads; where a step
    has one or two numbers, and there are 2048 steps or more, pieces of 1024 steps at once, by a
    parallel scan (G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990). The
    bits do not depend on the number of threads. Elsewhere it runs step by step in plain torch, as
    it does where :func:`bptt.kernels.backend` names the twin. Differentiable any number of times.

    Args:
        a: the factors, [T, ...]: float32, float64, complex64 or complex128.
        b: what is added, [T, ...], as ``a``.
        h_0: the state before the first step, [...]; zeros by default.

    Returns:
        h_1 to h_T, [T, ...].

    Raises:
        TypeError: the dtypes are others, or differ.
        ValueError: the shapes do not fit, or there is no step.

    >>> import torch, bptt
    >>> half = torch.full((3, 1), 0.5)
    >>> bptt.scan(half, torch.ones(3, 1), torch.tensor([8.0])).flatten().tolist()
    [5.0, 3.5, 2.75]
    """
    h_0 = b.new_zeros(b.shape[1:]) if h_0 is None else h_0
    if not a.dtype == b.dtype == h_0.dtype or a.dtype not in _DTYPES:
        raise TypeError(
            "bptt.scan: expected a, b and h_0 of one dtype, float32, float64, complex64 or "
            f"complex128, got {a.dtype}, {b.dtype} and {h_0.dtype}"
        )
    if not (a.dim() and len(a) and a.shape == b.shape and a.shape[1:] == h_0.shape):
        raise ValueError(
            "bptt.scan: expected a and b of one shape, [T, ...] with T >= 1, and h_0 of [...], got "
            f"{list(a.shape)}, {list(b.shape)} and {list(h_0.shape)}"
        )
    if not a.numel() or _why_not(a, b, h_0) is not None:
        return step_by_step(a, b, h_0)
    found: Tensor = _Scan.apply(a, b, h_0)
    return found


def step_by_step(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """Compute the same in plain torch."""
    states = []
    for factor, more in zip(a, b, strict=True):
        h = factor * h + more
        states.append(h)
    return torch.stack(states)


def _why_not(*tensors: Tensor) -> str | None:
    """Return why there is no kernel for some tensors; None where there is one."""
    if not runs_native():
        return "plain torch is chosen"
    if is_watched():
        return "a mode of torch has to see each operation"
    if any(not t.is_cpu or t.layout is not torch.strided for t in tensors):
        return "they are elsewhere"
    real = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors)
    return only_by_autograd(*real)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h_0: Tensor) -> Tensor:
        h = _native(a, b, h_0)
        ctx.save_for_backward(a, h_0, h)
        return h

    @staticmethod
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
        a, h_0, h = ctx.saved_tensors
        if torch.is_grad_enabled() or _why_not(a, d_h) is not None:  # to be differentiated again
            later = torch.cat([a[1:], torch.zeros_like(a[:1])])
            d_b = scan(later.conj().resolve_conj().flip(0), d_h.flip(0)).flip(0)
        else:
            d_b = _native(a, d_h, None)
        d_a = d_h_0 = None
        if ctx.needs_input_grad[0]:
            d_a = d_b * torch.cat([h_0.unsqueeze(0), h[:-1]]).conj()
        if ctx.needs_input_grad[2]:
            d_h_0 = a[0].conj() * d_b[0]
        return d_a, d_b, d_h_0


def _native(a: Tensor, b: Tensor, h_0: Tensor | None) -> Tensor:
    """Run the kernel; without an initial state back in time, by the conjugates of a_{t+1}."""
    given = [None if t is None else _parts(t) for t in (a, b, h_0)]
    a_, b_, first = (None if t is None else dense("scan", t, t.dtype, t.shape) for t in given)
    assert a_ is not None
    assert b_ is not None
    to = torch.empty_like(b_)
    call = _SCAN.pack(
        *(type_of(a_.dtype), a.is_complex(), threads.allowed(), h_0 is None),
        *(len(a), a.numel() // len(a), address(a_), address(b_)),
        *(0 if first is None else address(first), address(to)),
    )
    if library().bptt_run_scan(call) != 0:
        raise MemoryError(f"bptt: no memory for the work space of a scan over {len(a)} steps")
    return torch.view_as_complex(to) if a.is_complex() else to


def _parts(t: Tensor) -> Tensor:
    t = t.detach()
    if t.is_complex():
        t = torch.view_as_real(t.resolve_conj())
    return t.contiguous()
