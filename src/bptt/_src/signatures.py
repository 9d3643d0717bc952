"""How type checkers see the call of a module."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.credit.credit import Credit
from bptt._src.credit.plan import Plan

Sequence = TypeVar("Sequence", Tensor, PackedSequence)
State = TypeVar("State")

Device = torch.device | str | int | None


class Forward(Protocol[State]):
    """:meth:`bptt._src.layers.Layers.forward`, with the types of what it returns."""

    @overload
    def __call__(
        self,
        input: Sequence,
        hx: State | None = None,
        *,
        credit: Credit | Plan | str | None = None,
        carry: Tensor | None = None,
        resets: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Sequence, State]: ...

    @overload
    def __call__(
        self,
        input: Sequence,
        hx: State | None = None,
        *,
        credit: Credit | Plan | str | None = None,
        carry: Tensor | None = None,
        resets: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_states: Literal[True],
    ) -> tuple[Sequence, State, list[tuple[Sequence, ...]]]: ...

    @overload
    def __call__(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        credit: Credit | Plan | str | None = None,
        carry: Tensor | None = None,
        resets: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]: ...
