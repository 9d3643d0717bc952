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
from bptt._src.engines.guard import PLAIN, dtype_of_autocast, is_watched, recognise
from bptt._src.engines.sequence import again
from bptt._src.steps import Steps
from bptt._src.uncompiled import uncompiled
from bptt.cells import WEIGHT_NAMES, State

MOST_ROWS = 2048
"""Steps times sequences of a call that is remembered; larger ones would gain nothing."""

MOST_ROWS_OF_AUTOCAST = 16
"""The same under autocast: with so few rows it rounds only the results (``FEW`` in matrix.h)."""

MOST_CALLS = 8
"""Kinds of calls that are remembered of one module."""

_WEIGHTS = [f"{name}_l0" for name in WEIGHT_NAMES[:4]]

_CPU = torch.device("cpu")

_Kind = tuple[torch.Size, int, int, bool, torch.dtype | None, bool]
_Known = tuple[Any, int, Callable[..., bool], native.Again]

_known: WeakKeyDictionary[nn.Module, dict[_Kind, _Known | None]] = WeakKeyDictionary()
"""The kinds of calls that each module has had; None of those that it has had once."""


@uncompiled
def run_often(module: Any, input: Any, hx: Any, asked: tuple[Any, ...]) -> Any:
    """Run a call of a module's with nothing asked but, perhaps, resets; see :class:`Layers`."""
    found = like_before(module, input, hx, resets := asked[2])
    if found is None:
        found = module._run(input, hx, asked)
        remember(module, input, hx, resets)
    return found


def like_before(module: Any, input: Any, hx: Any, resets: Any) -> Any:
    """Run a call that is like an earlier one; None if it is not, or may not be.

    Nothing but an input and perhaps an initial state and resets may be given to the module, and
    operations must not be recorded.
    """
    calls, given = _known.get(module), _state(hx)
    if calls is None or given is None or type(input) is not Tensor:
        return None
    autocast = dtype_of_autocast(_CPU)
    x, state = (input, given) if autocast is None else _in_float32(input, given, autocast)
    if autocast is not None and x.dtype is not torch.float32:
        return None
    each = _different(state)
    found = calls.get(kind := _kind(x, state, each, resets, autocast))
    if found is None:
        return None
    settings, number, are_like_those, run = found
    weights = _weights(module)
    x, reset = _by_time(module, x, resets)
    operands = [x, *[w for w in weights if w is not None], *each]
    if reset is not None:
        operands.append(reset)
    if settings != _settings(module) or _is_special(autocast):
        return None
    if len(operands) != number or not are_like_those(*operands):
        return None
    y, final = again(run, x, state, weights, reset, records=kind[-1])
    if autocast is not None:
        like = given or (input,) * len(final)
        dtypes = module._under_autocast(autocast, like, False)
        final = tuple([s.to(d) for s, d in zip(final, dtypes, strict=True)])
        y = y.to(dtypes[0])
    return y.transpose(0, 1) if module.batch_first else y, final[0] if len(final) == 1 else final


def remember(module: Any, input: Any, hx: Any, resets: Any) -> None:
    """Take note of a call that has just been run, if one like it may go straight."""
    if type(input) is not Tensor or input.dim() != 3 or not _is_simple(module):
        return
    autocast, state = dtype_of_autocast(_CPU), _state(hx)
    if state is None or _is_special(autocast):
        return
    if autocast is not None:
        input, state = _in_float32(input, state, autocast)
        if input.dtype is not torch.float32:  # float64 is what autocast leaves alone
            return
    x, reset = _by_time(module, input, resets)
    steps, batch = x.shape[:2]
    if steps * batch > (MOST_ROWS if autocast is None else MOST_ROWS_OF_AUTOCAST):
        return
    each = _different(state)
    calls, kind = _known.setdefault(module, {}), _kind(input, state, each, resets, autocast)
    if kind not in calls:
        if len(calls) >= MOST_CALLS:
            calls.clear()
        calls[kind] = None
        return
    weights, w = _weights(module), module._weights(0, False)
    operands = [x, *[p for p in weights if p is not None], *each]
    if any(a is not b for a, b in zip(weights, w[:4], strict=True)) or not _are_plain(operands):
        return
    if reset is not None:
        if reset.shape != (steps, batch) or reset.dtype is not torch.bool or not _is_plain(reset):
            return
        operands.append(reset)
    before = state or tuple([x.new_zeros(1, batch, n) for n in module._state_sizes()])
    call = Call(module._stepped(), x, before, w, Steps((batch,) * steps))
    learns = any(t.requires_grad for t in operands)
    if engine_for(call) is native and learns >= kind[-1]:  # what records nothing is as it is
        run = native.Again(call, bool(state))
        calls[kind] = _settings(module), len(operands), recognise(operands), run


def _kind(
    input: Tensor, state: State, each: State, resets: Any, autocast: torch.dtype | None
) -> _Kind:
    has_resets, records = resets is not None, torch.is_grad_enabled()
    return input.shape, len(state), len(each), has_resets, autocast, records


def _in_float32(input: Tensor, state: State, autocast: torch.dtype) -> tuple[Tensor, State]:
    """Return input and state in float32, as the kernels read them, if autocast rounded them."""
    x = input.float() if input.dtype is autocast else input
    return x, tuple([s.float() if s.dtype is autocast else s for s in state])


def _by_time(module: Any, input: Tensor, resets: Any) -> tuple[Tensor, Any]:
    """Return the input and the resets with time first."""
    if not module.batch_first:
        return input, resets
    is_matrix = isinstance(resets, Tensor) and resets.dim() == 2
    return input.transpose(0, 1), resets.t() if is_matrix else resets


def _weights(module: Any) -> tuple[Tensor | None, ...]:
    own = module._parameters
    return tuple([own.get(name) for name in _WEIGHTS])


def _state(hx: Any) -> State | None:
    """Return the tensors of an initial state; none for zeros, None where it is something else."""
    if hx is None:
        return ()
    found = (hx,) if isinstance(hx, Tensor) else hx
    if type(found) is not tuple or not all(isinstance(s, Tensor) for s in found):
        return None
    return found


def _different(state: State) -> State:
    """Return each tensor of a state once: one may be several of them, as (zeros, zeros)."""
    return state if len(state) < 2 else tuple({id(s): s for s in state}.values())


def _settings(module: Any) -> tuple[Any, ...]:
    """Return what of a module decides what its call means."""
    return (
        module._stepped(),
        module.batch_first,
        module.num_layers,
        module.bidirectional,
        module.bias,
        module.proj_size,
        module.input_size,
        module.hidden_size,
    )


def _is_simple(module: Any) -> bool:
    """Whether a module is one layer in one direction, of W_ih, W_hh and biases, without masks."""
    cell = module._stepped()
    is_one = module.num_layers == 1 and not module.bidirectional
    return bool(is_one and not (module.proj_size or cell.units or cell.masks))


def _are_plain(operands: list[Tensor]) -> bool:
    """Whether all are dense as they are, and computed in one dtype that is theirs."""
    dtype = operands[0].dtype
    return computed_in(dtype, operands[0].device) is dtype and all(
        t.dtype is dtype and _is_plain(t) for t in operands
    )


def _is_plain(t: Tensor) -> bool:
    return type(t) in PLAIN and t.is_cpu and t.is_contiguous() and not t.is_neg()


def _is_special(autocast: torch.dtype | None) -> bool:
    """Whether something but module, operands and the CPU's autocast decides how a call is run."""
    return (
        (autocast is None and torch._C._is_any_autocast_enabled())
        or forward_ad._current_level >= 0
        or is_watched()
        or not runs_native()
    )
