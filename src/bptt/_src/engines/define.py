"""Operators of torch, by the shortest way from a graph to a function.

``torch.library.custom_op`` makes the same, and compares the memory of results and operands at each
call, which takes as long as half of a small layer. Here ``opcheck`` does that, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.library import Library, register_autograd, register_fake

from bptt._src.uncompiled import uncompiled

_LIBRARY = Library("bptt", "FRAGMENT")

Function = Callable[..., Any]


def operator(
    name: str, schema: str, tags: Sequence[torch.Tag] = ()
) -> Callable[[Function], Function]:
    """Define ``torch.ops.bptt.NAME``; the decorated function computes it.

    Args:
        name: the operator's.
        schema: its operands and results; no result shares memory with another or with an operand.
        tags: what else torch is to know of it.
    """

    def define(function: Function) -> Function:
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
        _LIBRARY.impl(name, uncompiled(function), "CompositeExplicitAutograd")
        return function

    return define


def shapes_of(name: str) -> Callable[[Function], Function]:
    """Register the decorated function for an operator's results without values, by shape alone."""

    def register(function: Function) -> Function:
        register_fake(f"bptt::{name}", function, lib=_LIBRARY)
        return function

    return register


def differentiate(name: str, backward: Function, keep: Function) -> None:
    """Register how gradients go back through an operator.

    Args:
        name: the operator's.
        backward: ``(ctx, gradients of the results) -> those of the operands``.
        keep: ``(ctx, inputs, output)``, puts aside what ``backward`` needs.
    """
    register_autograd(f"bptt::{name}", backward, setup_context=keep, lib=_LIBRARY)
