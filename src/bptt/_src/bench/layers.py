"""A training step of one layer: forward, backward, the gradients of the input and all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import bptt
from bptt._src.bench import jax_scan
from bptt._src.bench.result import EXACT, JAX, OURS, TORCH, WINDOWS, Row
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, Surroundings, take_turns, timed

MODULES = {
    OURS: {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM},
    TORCH: {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM},
}
AGREES = 1e-4
"""How far two contenders may be apart, in multiples of a tensor's greatest entry."""


@runtime_checkable
class Contender(Protocol):
    """A way of taking a training step of a layer."""

    def __call__(self) -> float:
        """Take it; give its seconds."""

    def found(self) -> list[Tensor]:
        """Take it; give the outputs, and the gradients of the input and of the four weights."""


class TorchLayer:
    """A module of torch's kind as a contender.

    Args:
        module: torch.nn's or ours.
        x: [T, B, I].
        d_y: the gradient of the outputs, [T, B, H].
        around: what else training computes, before each step; not timed.
        how: further arguments of the module.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, d_y: Tensor, around: Callable[[], object], **how: Any
    ) -> None:
        self.module, self.d_y, self.around, self.how = module, d_y, around, how
        self.x = x.clone().requires_grad_()

    def __call__(self) -> float:
        """Take a step, into gradient buffers that are fresh, as after an update."""
        self._forget()
        self.around()
        return timed(self._step)

    def found(self) -> list[Tensor]:
        """Return what the contenders are compared by."""
        self._forget()
        y = self._step()
        gradients = (self.x.grad, *(p.grad for p in self.module.parameters()))
        return [y.detach(), *(g for g in gradients if g is not None)]

    def _forget(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None

    def _step(self) -> Tensor:
        y: Tensor = self.module(self.x, **self.how)[0]
        y.backward(self.d_y)
        return y


def measure_layer(cell: str, shape: Shape, effort: Effort, pace: Pace, *, jax: bool) -> Row:
    """Time a training step of a layer.

    Args:
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        shape: T, B, I, H.
        effort: how much.
        pace: how to stop.
        jax: whether JAX's scan takes part.

    Returns:
        The row; who did not compute what torch.nn computes is not in it, and a note says so.
    """
    contenders, notes = agreeing(_contenders(cell, shape, jax=jax), reference=TORCH)
    times = take_turns(contenders, effort, pace)
    name = cell.upper()
    about = [f"{name} {shape}: {note}" for note in notes]
    return Row("kernels", name, str(shape), shape.flop(cell), times, about)


def measure_credit(cell: str, shape: Shape, effort: Effort, pace: Pace) -> Row:
    """Time windows of five steps behind each loss, and the exact gradient beside them.

    The arguments are those of :func:`measure_layer`.
    """
    torch.manual_seed(0)
    module, x, d_y = MODULES[OURS][cell](shape.inputs, shape.hidden), *_problem(shape)
    around = Surroundings(shape.steps * shape.batch, shape.hidden)
    window = bptt.Truncated(every=1, reach=5)
    contenders = {
        EXACT: TorchLayer(module, x, d_y, around),
        WINDOWS: TorchLayer(module, x, d_y, around, credit=window),
    }
    times = take_turns(contenders, effort, pace)
    return Row("credit", cell.upper(), str(shape), None, times, base=EXACT)


def _problem(shape: Shape) -> tuple[Tensor, Tensor]:
    T, B = shape.steps, shape.batch
    return torch.randn(T, B, shape.inputs), torch.randn(T, B, shape.hidden)


def torch_and_ours(cell: str, shape: Shape) -> dict[str, Contender]:
    """Return torch.nn's layer and ours with the same weights, by name."""
    return _contenders(cell, shape, jax=False)


def _contenders(cell: str, shape: Shape, *, jax: bool) -> dict[str, Contender]:
    torch.manual_seed(0)
    x, d_y = _problem(shape)
    around = Surroundings(shape.steps * shape.batch, shape.hidden)
    modules = {n: kinds[cell](shape.inputs, shape.hidden) for n, kinds in MODULES.items()}
    modules[OURS].load_state_dict(modules[TORCH].state_dict())
    found: dict[str, Contender] = {
        name: TorchLayer(module, x, d_y, around) for name, module in modules.items()
    }
    if jax:
        weights = [p.detach() for p in modules[TORCH].parameters()]
        found[JAX] = jax_scan.ScanLayer(cell, weights, x, d_y, around)
    return found


def agreeing(
    contenders: Mapping[str, Contender], reference: str
) -> tuple[dict[str, Contender], list[str]]:
    """Leave out who computes something else than the reference; return the others, and notes."""
    right, notes = {}, []
    expected = contenders[reference].found()
    for name, contender in contenders.items():
        gap = distance(contender.found(), expected)
        if gap <= AGREES:
            right[name] = contender
        else:
            notes.append(f"{name} is not timed, it is {gap:.1g} away from {reference}")
    return right, notes


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest difference between tensors, in multiples of each one's greatest entry."""
    gaps = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
    ]
    return max(gaps)
