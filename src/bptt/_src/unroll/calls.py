"""Checks of a recurrent module that is called in pieces.

A module called in pieces is cut, reset and run again by way of the state that it returns. If it
keeps the state to itself, detaches it or lays it out differently, all of that would have no effect
or a wrong one, so each of these cases is detected and refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bptt._src.autograd import nodes_between
from bptt._src.layout import Layout, declared, unwrapped
from bptt._src.pytree import check_leaves, is_float, leaves_of, map_tensors, tensors_of
from bptt._src.unroll.buffers import Buffers

RETURNS = ("bptt.unroll: the module", "(outputs, state)")


def refuse_cell(module: Any, function: str) -> None:
    """Refuse a cell, which takes single steps, and explain how to run it over all of them."""
    inside = unwrapped(module) if isinstance(module, nn.Module) else module
    if isinstance(inside, nn.RNNCellBase):
        kind = type(inside).__name__
        raise TypeError(
            f"{function}: expected a module that runs over many steps, got a {kind}, which "
            f"takes one; wrap it: bptt.Stepwise(cell)"
        )


def check_callable(module: Any, function: str) -> None:
    """Refuse an object that cannot be called with inputs and a state.

    Raises:
        TypeError: it is not callable, or takes other arguments.
    """
    if not callable(module):
        raise TypeError(
            f"{function}: expected a module, or a function (inputs, state) -> (outputs, state), "
            f"got {module!r}"
        )
    inside = unwrapped(module) if isinstance(module, nn.Module) else module
    if isinstance(inside, nn.Module):
        takes_both = _takes(type(inside).forward, 3)
    else:
        takes_both = not inspect.isfunction(inside) or _takes(inside, 2)
    if not takes_both:
        name = type(inside).__name__ if isinstance(inside, nn.Module) else inside.__name__
        raise TypeError(
            f"{function}: expected a module that is called as module(inputs, state), and {name} "
            "does not take both; give it a state, or wrap it: lambda x, s: ..."
        )


@cache
def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with this many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function without a signature, written in C
        return True
    return True


def refuse_bidirectional(module: Any) -> None:
    """Refuse a bidirectional module, which cannot be called in pieces."""
    if declared(module, "bidirectional", False):
        raise ValueError(
            "bptt.unroll: the module is bidirectional, so it cannot be run in pieces: its outputs "
            "depend on later steps; use bptt.RNN, GRU or LSTM with memory=None and a credit "
            "without overlapping windows, or credit=bptt.Full()"
        )


def pair(found: Any, of: str, expected: str) -> tuple[Any, Any]:
    """Check that a module returned ``(outputs, state)``, and return them.

    Raises:
        TypeError: it returned something else.
    """
    if isinstance(found, tuple | list) and len(found) == 2:
        return found[0], found[1]
    kind = type(found).__name__
    got = f"a {kind}"
    if isinstance(found, Tensor):
        got = f"a tensor of shape {tuple(found.shape)}"
    elif isinstance(found, tuple | list):
        got = f"a {kind} of {len(found)}"
    raise TypeError(f"{of} must return {expected}, got {got}")


def check_output(y: Any, length: int, time: int) -> None:
    """Refuse outputs that do not have one entry for each step."""
    for v in leaves_of(y):
        if isinstance(v, Tensor) and (v.dim() <= time or v.shape[time] != length):
            raise ValueError(
                f"bptt.unroll: the module's output for {length} steps is {tuple(v.shape)}; "
                f"dimension {time} must be time"
            )


def check_visible(state: Any) -> None:
    """Refuse a state on which a plan or a memory cannot act.

    Raises:
        TypeError: it contains an object whose tensors cannot be found.
        ValueError: it contains no tensor at all.
    """
    check_leaves(state, "bptt.unroll", "the state that the module returned")
    if not tensors_of(state):
        got = repr(state) if state in (None, (), [], {}) else f"a {type(state).__name__}"
        raise ValueError(
            f"bptt.unroll: the module returned a state without a tensor ({got}), on which credit, "
            "resets and memory cannot act; return the state, (outputs, state), and take it as an "
            "argument; a module that keeps it in itself, such as snnTorch's with "
            "init_hidden=True, must return it"
        )


def check_batch(module: Any, state: Any, layout: Layout, length: int, is_given: bool) -> None:
    """Refuse a state whose batch is not the inputs', which shows that time is elsewhere.

    Args:
        module: the module that returned it.
        state: the state.
        layout: the layout of the inputs.
        length: the number of steps the module was given.
        is_given: whether the caller gave the batch dimension of the state.
    """
    if layout.batch is None or hasattr(unwrapped(module), "cell"):  # bptt.Stepwise: time is first
        return
    dim, B = layout.state_dim, layout.batch
    stated = is_given or declared(module, "state_batch_dim") is not None
    for s in tensors_of(state):
        if not is_float(s) or s.dim() == 0 or (s.dim() > dim and s.shape[dim] == B):
            continue
        swapped = length != B and length in s.shape
        absent = B not in s.shape and s.dim() > 1
        if swapped or (layout.is_certain and (absent or stated)):
            first = "" if layout.batch_first else "; inputs that are [B, T, ...] need "
            first += "" if layout.batch_first else "batch_first=True"
            raise ValueError(
                f"bptt.unroll: for {length} steps of a batch of {B} the module returned a state of "
                f"shape {tuple(s.shape)}, whose dimension {dim} should be the batch; give the "
                f"right one as state_batch_dim{first}"
            )


# --------------------------------------------------------------------------- detached states


def is_detached(y: Any, state: Any) -> bool:
    """Whether outputs have a graph and the state returned with them has none."""
    states = [state] if isinstance(state, Tensor) else [s for s in leaves_of(state) if is_float(s)]
    if not states or not torch.is_grad_enabled() or any(s.requires_grad for s in states):
        return False
    return any(v.requires_grad for v in leaves_of(y) if isinstance(v, Tensor))


def refuse_detached(
    run: Callable[[Any, Any], Any], buffers: Buffers, x: Any, state: Any, unit: str
) -> None:
    """Refuse a module whose states have no graph even if the state going in has one.

    Called when a state came without a graph. A network whose recurrent part has nothing to
    learn, such as a reservoir, rightly returns such states, so it is run once more, with inputs
    and a state that require gradients.

    Args:
        run: the module, or cell.
        buffers: the buffers that it changes.
        x: its inputs.
        state: the state before them.
        unit: what the inputs are, for the message.
    """

    def leaf(v: Tensor) -> Tensor:
        return v.detach().requires_grad_(is_float(v))

    with torch.random.fork_rng(), torch.enable_grad(), buffers.aside():
        y, after = run(map_tensors(leaf, x), map_tensors(leaf, state))
    if is_detached(y, after):
        raise ValueError(
            f"bptt.unroll: the module returns a detached state, so no loss is credited beyond "
            f"{unit}, but the credit reaches further; return the state with its graph: the credit "
            "cuts it where needed"
        )


# ----------------------------------------------------------------------------- hidden states


def refuse_hidden_path(found: Any, entered: Any, x: Any, since: int, mark: int) -> None:
    """Refuse a piece that depends on earlier pieces by another way than its state.

    Args:
        found: the piece's outputs and final state.
        entered: the state that went in.
        x: its inputs.
        since: the number of the last node before the sequence.
        mark: the number of the last node before the piece.
    """
    roots, known = tensors_of(found), [*tensors_of(entered), *tensors_of(x)]
    cached = [v for v in parametrize._cache.values() if isinstance(v, Tensor)]
    node = nodes_between(roots, [*known, *cached], since, mark)
    if node is not None:
        raise ValueError(
            f"bptt.unroll: the module's outputs depend on its earlier steps in another way than "
            f"through the state that it returns (by {node}), so credit and resets do not act on "
            "it: it keeps a state in itself; return that as part of the state, and take it as an "
            "argument"
        )
