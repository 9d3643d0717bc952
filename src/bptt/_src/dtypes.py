"""Which dtypes a module takes, computes in, and returns under autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt._src.engines.guard import dtype_of_autocast
from bptt._src.rows import Rows
from bptt.cells import State

Rule = Callable[[torch.dtype, tuple[Tensor, ...], bool], list[torch.dtype]]
"""``(autocast's dtype, the initial state, whether the input is packed) -> dtypes`` of the states;
where no state was given, there is the input for each of its tensors."""


def check_dtype(called: str, what: str, x: Tensor, weights: torch.dtype) -> None:
    """Refuse another dtype than the weights'; under autocast its own and float32 are taken, too.

    Raises:
        ValueError: an input has another one.
        RuntimeError: an initial state has.
    """
    if x.dtype == weights:
        return
    autocast = dtype_of_autocast(x.device)
    if autocast is None or x.dtype not in (autocast, torch.float32):
        raise (ValueError if what == "the input" else RuntimeError)(
            f"{called}: {what} is {x.dtype} and the weights are {weights}; "
            f"convert one of them: .to({weights}), or module.to({x.dtype})"
        )


def computed_in(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a module's sums and states: on a CPU float32 at least."""
    return torch.float32 if device.type == "cpu" and weights.itemsize < 4 else weights


def is_bf16(weights: torch.dtype, device: torch.device) -> bool:
    """Whether products may be of bfloat16: by the parameters' dtype, or by autocast's."""
    if device.type != "cpu" or weights is torch.float64:
        return False
    return torch.bfloat16 in (weights, dtype_of_autocast(device))


def rounded(
    rows: Rows,
    hx: Any,
    weights: torch.dtype,
    rule: Rule,
    y: Tensor,
    finals: list[State],
    each: list[State],
) -> tuple[Tensor, list[State], list[State]]:
    """Round results to the dtypes of autocast, where it is on, or to that of the weights.

    Args:
        rows: the input.
        hx: the initial state, as it was given.
        weights: their dtype.
        rule: which dtypes these are.
        y: the outputs, which get that of h.
        finals: the final states of each layer and direction.
        each: the states after each step, of each layer.
    """
    autocast = dtype_of_autocast(rows.x.device)
    if autocast is None or weights is torch.float64:  # which autocast leaves alone
        if y.dtype is weights:
            return y, finals, each
        dtypes = [weights] * len(finals[0])
    else:
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx or (rows.x,) * len(finals[0]))
        dtypes = rule(autocast, given, isinstance(rows.like, PackedSequence))

    def to_those(states: list[State]) -> list[State]:
        return [tuple(s.to(d) for s, d in zip(state, dtypes, strict=True)) for state in states]

    return y.to(dtypes[0]), to_those(finals), to_those(each)
