"""A call with ``credit="online"``: what it refuses, and what it makes of the state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.credit.online import OnlineState, is_online
from bptt._src.credit.spelling import as_credit
from bptt._src.dtypes import computed_in, is_bf16
from bptt._src.engines import online
from bptt._src.engines.call import Call
from bptt._src.engines.guard import without_autocast
from bptt._src.rows import boundary_of
from bptt._src.steps import Steps
from bptt._src.uncompiled import uncompiled
from bptt.cells import Weights


@uncompiled
def run_online(network: Any, input: Any, hx: Any, asked: tuple[Any, ...]) -> Any:
    """Run a module's only layer, and return with its state how that depends on the weights.

    Args:
        network: the module, :class:`bptt._src.layers.Layers`.
        input: as for its ``forward``.
        hx: likewise, or an :class:`OnlineState`.
        asked: ``credit, carry, resets, generator, return_states``.

    Raises:
        ValueError: the credit is another one, or ``carry`` is given; the module's layers are not
            one of a cell without a recurrent matrix, in one direction and without a projection;
            the input is packed; or the initial state needs a gradient.
        RuntimeError: the sensitivities are those of another module or batch.
    """
    credit, carry, resets, generator, return_states = asked
    name, past = network._called, hx if isinstance(hx, OnlineState) else None
    _refuse(network, name, input, hx, credit, carry)
    hx = hx if past is None else past.detach().state
    if not torch.is_grad_enabled():
        return network._run(input, hx, (None, None, resets, generator, return_states))
    rows = network._rows(input)
    state, own = network._initial_state(rows, hx), network._dtype
    _, resets = network._crossing(rows, None, resets)
    device, dtype = rows.x.device, computed_in(own, rows.x.device)
    with without_autocast(device):
        own_w = network._weights(0, False)
        w = Weights(*(p if p is None else p.to(dtype) for p in own_w))  # type: ignore[arg-type]
        cell, x = network._stepped(), rows.x.to(dtype)
        if cell.masks:
            x = torch.cat([x, network._masks(x, x.shape[:-1])], dim=-1)
        call = Call(
            *(cell, x, tuple(s.to(dtype) for s in state), w),
            Steps(rows.sizes),
            boundary_of(rows.sizes, None, resets, False),
            all_states=return_states,
            bf16=is_bf16(own, device),
        )
        y, final, others, after = online.sequence(call, _sensitivities(name, call, past))
    y, final, *each = network._laid_out(rows, hx, return_states, y, [final], [(y, *others)])
    return y, OnlineState(final, *after), *each


def _sensitivities(name: str, call: Call, past: OnlineState | None) -> online.Sensitivities:
    if past is None:
        return online.Sensitivities.none_yet(call)
    found, expected = [tuple(t.shape) for t in past[1:]], [*online.shapes(call)]
    kinds = {(t.dtype, t.device) for t in past[1:]}
    if found != expected or kinds != {(call.x.dtype, call.x.device)}:
        raise RuntimeError(
            f"{name}: expected an OnlineState with sensitivities of shape {expected}, "
            f"{call.x.dtype} on {call.x.device}, got {found}, {past.of_input.dtype} on "
            f"{past.of_input.device}: "
            "begin anew, from its .state"
        )
    return online.Sensitivities(past.of_input, past.of_units)


def _refuse(network: Any, name: str, input: Any, hx: Any, credit: Any, carry: Any) -> None:
    if not is_online(credit):
        raise ValueError(
            f"{name}: an OnlineState is for credit='online', got credit={credit!r}: pass that, or "
            "go on from its .state, detached, to forget what is before"
        )
    as_credit(credit)
    if carry is not None:
        raise ValueError(f"{name}: give a credit or carry, not both: a credit makes it")
    reason = _why_not(network)
    if reason is None and isinstance(input, PackedSequence):
        reason = "a PackedSequence ends at different steps: pad it, or run each sequence by itself"
    given = () if hx is None or isinstance(hx, OnlineState) else hx
    states = (given,) if isinstance(given, Tensor) else given
    if reason is None and torch.is_grad_enabled() and any(s.requires_grad for s in states):
        reason = (
            "the initial state needs a gradient, which later calls would not add to: pass it "
            "detached, or the OnlineState that the last call returned"
        )
    if reason is not None:
        raise ValueError(f"{name}: credit='online': {reason}")


def _why_not(network: Any) -> str | None:
    cell = network.cell
    if cell.gates_h:
        return (
            f"the units of {cell.name} see each other through weight_hh (gates_h={cell.gates_h}), "
            "so that sensitivities would cost H times as much: use a cell with gates_h=0, as "
            "bptt.cells.MIN_GRU, or 'truncated:35'"
        )
    if network.num_layers > 1:
        return (
            f"it is for a single layer, got num_layers={network.num_layers}: those below would be "
            "credited within a call alone; stack modules of one layer if that is meant"
        )
    if network.bidirectional:
        return "a network of two directions has read the future: use bidirectional=False"
    if network.proj_size:
        return "there is a projection: leave proj_size out, and put a torch.nn.Linear behind it"
    return None
