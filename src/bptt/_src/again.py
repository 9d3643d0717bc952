"""Small calls that are like one that went the whole way before.

Acting step by step, answering requests or training a small model calls a module with the same sizes
again and again. To find out about such a call (which engine serves it, whether its operands fit and
are plain memory) takes longer than the native kernel does. A call that is like an earlier one in
all that decides about it goes straight there, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bptt._src.dtypes import computed_in
from bptt._src.engines import native
from bptt._src.engines.backend import engine_for, runs_native
from bptt._src.engines.call import Call
from bptt._src.engines.guard import PLAIN, is_watched, recognise
from bptt._src.engines.sequence import again
from bptt._src.steps import Steps
from bptt.cells import WEIGHT_NAMES, State

MOST_ROWS = 2048
"""Steps times sequences of a call that is remembered; larger ones would gain nothing."""

MOST_CALLS = 8
"""Kinds of calls that are remembered of one module."""

_WEIGHTS = [f"{name}_l0" for name in WEIGHT_NAMES[:4]]

_Kind = tuple[torch.Size, int, int, bool]
_Known = tuple[Any, int, Callable[..., bool], native.Again]

_known: WeakKeyDictionary[nn.Module, dict[_Kind, _Known | None]] = WeakKeyDictionary()
"""The kinds of calls that each module has had; None of those that it has had once."""


def like_before(module: Any, input: Any, hx: Any) -> Any:
    """Run a call that is like an earlier one; None if it is not, or may not be.

    Nothing but an input and perhaps an initial state may be given to the module, and operations
    must not be recorded.
    """
    calls = _known.get(module)
    if calls is None or type(input) is not Tensor:
        return None
    state = _state(hx)
    each = _different(state)
    found = calls.get(kind := _kind(input, state, each))
    if found is None:
        return None
    settings, number, are_like_those, run = found
    weights = _weights(module)
    x = input.transpose(0, 1) if module.batch_first else input
    operands = [x, *[w for w in weights if w is not None], *each]
    if settings != _settings(module) or _is_special():
        return None
    if len(operands) != number or not are_like_those(*operands):
        return None
    y, final = again(run, x, state, weights, records=kind[-1])
    return y.transpose(0, 1) if module.batch_first else y, final[0] if len(final) == 1 else final


def remember(module: Any, input: Any, hx: Any) -> None:
    """Take note of a call that has just been run, if one like it may go straight."""
    if type(input) is not Tensor or input.dim() != 3 or not _is_simple(module):
        return
    x = input.transpose(0, 1) if module.batch_first else input
    (steps, batch), state = x.shape[:2], _state(hx)
    each = _different(state)
    if steps * batch > MOST_ROWS or _is_special():
        return
    calls, kind = _known.setdefault(module, {}), _kind(input, state, each)
    if kind not in calls:
        if len(calls) >= MOST_CALLS:
            calls.clear()
        calls[kind] = None
        return
    weights, w = _weights(module), module._weights(0, False)
    operands = [x, *[p for p in weights if p is not None], *each]
    if any(a is not b for a, b in zip(weights, w[:4], strict=True)) or not _are_plain(operands):
        return
    before = state or tuple([x.new_zeros(1, batch, n) for n in module._state_sizes()])
    call = Call(module.cell, x, before, w, Steps((batch,) * steps))
    learns = any(t.requires_grad for t in operands)
    if engine_for(call) is native and learns >= kind[-1]:  # what records nothing is as it is
        run = native.Again(call, bool(state))
        calls[kind] = _settings(module), len(operands), recognise(operands), run


def _kind(input: Tensor, state: State, each: State) -> _Kind:
    return input.shape, len(state), len(each), torch.is_grad_enabled()


def _weights(module: Any) -> tuple[Tensor | None, ...]:
    own = module._parameters
    return tuple([own.get(name) for name in _WEIGHTS])


def _state(hx: Any) -> State:
    return () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _different(state: State) -> State:
    """Return each tensor of a state once: one may be several of them, as (zeros, zeros)."""
    return state if len(state) < 2 else tuple({id(s): s for s in state}.values())


def _settings(module: Any) -> tuple[Any, ...]:
    """Return what of a module decides what its call means."""
    return (
        module.cell,
        module.batch_first,
        module.num_layers,
        module.bidirectional,
        module.bias,
        module.proj_size,
        module.input_size,
        module.hidden_size,
    )


def _is_simple(module: Any) -> bool:
    """Whether a module is one layer in one direction, of W_ih, W_hh and biases."""
    return bool(
        module.num_layers == 1
        and not module.bidirectional
        and not module.proj_size
        and not module.cell.units
    )


def _are_plain(operands: list[Tensor]) -> bool:
    """Whether all are dense as they are, and computed in one dtype that is theirs."""
    dtype = operands[0].dtype
    return computed_in(dtype, operands[0].device) is dtype and all(
        type(t) in PLAIN and t.is_cpu and t.dtype is dtype and t.is_contiguous() and not t.is_neg()
        for t in operands
    )


def _is_special() -> bool:
    """Whether something but module and operands decides how a call is run."""
    return (
        torch._C._is_any_autocast_enabled()
        or forward_ad._current_level >= 0
        or is_watched()
        or not runs_native()
    )
