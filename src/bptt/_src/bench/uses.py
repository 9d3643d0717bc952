"""What layers do beside the usual training: few rows at a time, readouts, further options."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bptt._src.bench.layers import (
    AGREES_BF16,
    MODULES,
    Contender,
    TorchLayer,
    agreeing,
    autocast,
    contenders_of,
)
from bptt._src.bench.result import IN_BF16, OURS, TORCH, Row, split_by_dtype
from bptt._src.bench.shapes import ReadoutShape, Shape, Variant
from bptt._src.bench.timing import Effort, Pace, Surroundings, take_turns, timed
from bptt.kernels import backend
from bptt.losses import linear_cross_entropy

AGREES_HALF = {"float16": 0.02, "bfloat16": AGREES_BF16}
"""How far layers of these dtypes may be apart, in multiples of a tensor's greatest entry."""
STEPS = 3
"""The most for which torch.nn's cell, called once a step, is among those who act."""


def measure_acting(cell: str, shape: Shape, effort: Effort, pace: Pace) -> list[Row]:
    """Time a forward pass without gradients that goes on from the state before it.

    Args:
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        shape: T, B, I, H.
        effort: how much.
        pace: how to stop.

    Returns:
        A row of float32 and, where the kernels have products of it, one of bfloat16.
    """
    contenders = contenders_of(cell, shape, trains=False, bf16=backend().bf16, steps=STEPS)
    flop = shape.flop(cell) // 3
    return _measure("acting", cell.upper(), str(shape), flop, contenders, effort, pace)


def measure_readout(shape: ReadoutShape, effort: Effort, pace: Pace) -> list[Row]:
    """Time a readout's loss and its gradients; the rest is as for :func:`measure_acting`."""
    torch.manual_seed(0)
    given = (
        torch.randn(shape.rows, shape.hidden),
        torch.randn(shape.vocabulary, shape.hidden) * shape.hidden**-0.5,
        torch.randn(shape.vocabulary),
        torch.randint(shape.vocabulary, (shape.rows,)),
    )
    losses = {OURS: linear_cross_entropy, TORCH: _plain_loss}
    contenders: dict[str, Contender] = {n: _Readout(f, *given) for n, f in losses.items()}
    if backend().bf16:
        contenders |= {IN_BF16[n]: _Readout(f, *given, bf16=True) for n, f in losses.items()}
    return _measure("readout", "readout", str(shape), shape.flop, contenders, effort, pace)


def _plain_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(linear(hidden, weight, bias), targets)


class _Readout:
    """A readout's loss, forward and backward, as a contender."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        *,
        bf16: bool = False,
    ) -> None:
        self.loss, self.targets, self.bf16 = loss, targets, bf16
        self.leaves = [t.detach().requires_grad_() for t in (hidden, weight, bias)]

    def __call__(self) -> float:
        self._forget()
        return timed(self._step)

    def found(self) -> list[Tensor]:
        self._forget()
        loss = self._step()
        return [loss.detach(), *(t.grad for t in self.leaves if t.grad is not None)]

    def _forget(self) -> None:
        for t in self.leaves:
            t.grad = None

    def _step(self) -> Tensor:
        with autocast(self.bf16):
            loss = self.loss(*self.leaves, self.targets)
        loss.backward()
        return loss


def measure_variant(variant: Variant, effort: Effort, pace: Pace) -> list[Row]:
    """Time a training step of a layer with a projection, or with weights of half precision.

    The rest is as for :func:`measure_acting`.
    """
    torch.manual_seed(0)
    shape = variant.shape
    dtype: torch.dtype = getattr(torch, variant.dtype)
    how: dict[str, Any] = {"proj_size": variant.projection} if variant.projection else {}
    kinds = {name: kinds[variant.cell] for name, kinds in MODULES.items()}
    modules = {n: kind(shape.inputs, shape.hidden, dtype=dtype, **how) for n, kind in kinds.items()}
    modules[OURS].load_state_dict(modules[TORCH].state_dict())
    rows = (shape.steps, shape.batch)
    x = torch.randn(*rows, shape.inputs).to(dtype)
    d_y = torch.randn(*rows, variant.projection or shape.hidden).to(dtype)
    around = Surroundings(shape.steps * shape.batch, shape.hidden)
    names = IN_BF16 if dtype is torch.bfloat16 else {name: name for name in modules}
    contenders = {names[n]: TorchLayer(module, x, d_y, around) for n, module in modules.items()}
    about = "variants", variant.name, str(shape), variant.flop
    within = AGREES_HALF.get(variant.dtype)
    with warnings.catch_warnings():
        # torch says so once, to whoever trains an LSTM with a projection.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        given = (*about, contenders, effort, pace)
        return _measure(*given, reference=names[TORCH], within=within)


def _measure(
    section: str,
    name: str,
    shape: str,
    flop: int,
    contenders: Mapping[str, Contender],
    effort: Effort,
    pace: Pace,
    *,
    reference: str = TORCH,
    within: float | None = None,
) -> list[Row]:
    right, notes = agreeing(contenders, reference, within)
    about: Sequence[str] = [f"{name} {shape}: {note}" for note in notes]
    times = take_turns(right, effort, pace)
    return split_by_dtype(Row(section, name, shape, flop, times, list(about)))
