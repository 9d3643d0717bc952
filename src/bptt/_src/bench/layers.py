"""A training step of one layer: forward, backward, the gradients of the input and all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import bptt
from bptt._src.bench import jax_scan
from bptt._src.bench.result import (
    ALL_IN_BF16,
    CELL,
    CONVERTED,
    EXACT,
    IN_BF16,
    JAX,
    OURS,
    TORCH,
    WINDOWS,
    Row,
)
from bptt._src.bench.shapes import Shape
from bptt._src.bench.timing import Effort, Pace, Surroundings, take_turns, timed

MODULES = {
    OURS: {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM},
    TORCH: {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM},
}
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
AGREES = 1e-4
"""How far two contenders may be apart, in multiples of a tensor's greatest entry."""
AGREES_BF16 = 0.1
"""The same in bfloat16, of eight bits; torch.nn's own gradients over 1000 steps are .09 away."""


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
        bf16: whether the forward pass runs under autocast to bfloat16.
        how: further arguments of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        d_y: Tensor,
        around: Callable[[], object],
        *,
        bf16: bool = False,
        **how: Any,
    ) -> None:
        self.module, self.d_y, self.around, self.how = module, d_y, around, how
        self.x = x.clone().requires_grad_()
        self.bf16 = bf16

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
        with autocast(self.bf16):
            y: Tensor = self.module(self.x, **self.how)[0]
        y.backward(self.d_y.to(y.dtype))
        return y


class TorchForward:
    """The forward pass of a module of torch's kind, without gradients, as a contender.

    Each call goes on from the state that the one before it left, as in acting and sampling.

    Args:
        module: torch.nn's, ours, or a cell that is called once a step.
        x: the input that it takes.
        around: what else is computed before each call; not timed.
        bf16: whether it runs under autocast to bfloat16.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, around: Callable[[], object], *, bf16: bool = False
    ) -> None:
        self.module, self.x, self.around, self.bf16 = module, x, around, bf16
        self.state: Any = None

    def __call__(self) -> float:
        """Go on; give the seconds."""
        self.around()
        return timed(self._go_on)

    def found(self) -> list[Tensor]:
        """Return what the contenders are compared by: the outputs that follow a zero state."""
        self.state = None
        return [self._go_on()]

    def _go_on(self) -> Tensor:
        y: Tensor
        with torch.inference_mode(), autocast(self.bf16):
            y, self.state = self.module(self.x, self.state)
        return y


class CellLoop(nn.Module):
    """torch.nn's cell with a layer's weights, called once a step.

    Args:
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        layer: torch.nn's, whose weights it takes.
    """

    def __init__(self, cell: str, layer: nn.RNNBase) -> None:
        super().__init__()
        self.cell = CELLS[cell](layer.input_size, layer.hidden_size)
        weights = layer.state_dict()
        self.cell.load_state_dict({n.removesuffix("_l0"): w for n, w in weights.items()})

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Compute the outputs of one step, [B, I], or of several, [T, B, I], and the state."""
        outputs = []
        for step in (x,) if x.dim() == 2 else x.unbind():
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return outputs[0] if x.dim() == 2 else torch.stack(outputs), state


def autocast(bf16: bool) -> torch.autocast:
    """Return a context in which torch multiplies in bfloat16, or one that changes nothing."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


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


def measure_layer_in_bf16(cell: str, shape: Shape, effort: Effort, pace: Pace) -> Row:
    """Time a training step under autocast to bfloat16, and ours in float32 beside it.

    The arguments are those of :func:`measure_layer`.
    """
    contenders = contenders_of(cell, shape, trains=True, bf16=True, steps=0)
    right, notes = agreeing(contenders, reference=TORCH)
    wanted = (IN_BF16[OURS], IN_BF16[TORCH], OURS)
    times = take_turns({name: right[name] for name in wanted if name in right}, effort, pace)
    about = [f"{cell.upper()} {shape}: {note}" for note in notes]
    flop = shape.flop(cell)
    return Row("bf16", cell.upper(), str(shape), flop, times, about, base=IN_BF16[OURS])


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


def contenders_of(
    cell: str, shape: Shape, *, trains: bool, bf16: bool, steps: int
) -> dict[str, Contender]:
    """Return ours and torch.nn's ways to compute a layer with the same weights, by name.

    Args:
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        shape: T, B, I, H.
        trains: whether it is a training step; if not, a forward pass without gradients.
        bf16: whether each is there under autocast to bfloat16, too, and of forward passes those of
            torch.nn with weights of bfloat16.
        steps: the most for which torch.nn's cell is there, called once a step.
    """
    torch.manual_seed(0)
    x, d_y = _problem(shape)
    around = Surroundings(shape.steps * shape.batch, shape.hidden)
    layer = MODULES[TORCH][cell](shape.inputs, shape.hidden)
    ours = MODULES[OURS][cell](shape.inputs, shape.hidden)
    ours.load_state_dict(layer.state_dict())
    modules: dict[str, nn.Module] = {OURS: ours, TORCH: layer}
    if shape.steps <= steps:
        modules[CELL] = CellLoop(cell, layer)
    found: dict[str, Contender] = {}
    for is_bf16 in (False, True)[: 1 + bf16]:
        for name, module in modules.items():
            one = name == CELL and shape.steps == 1
            rows = (x[0], d_y[0]) if one else (x, d_y)
            found[IN_BF16[name] if is_bf16 else name] = (
                TorchLayer(module, *rows, around, bf16=is_bf16)
                if trains
                else TorchForward(module, rows[0], around, bf16=is_bf16)
            )
    if bf16 and not trains:
        for name in (n for n in CONVERTED if n in modules):
            module = deepcopy(modules[name]).bfloat16()
            given = (x[0] if name == CELL and shape.steps == 1 else x).bfloat16()
            found[CONVERTED[name]] = TorchForward(module, given, around)
    return found


def agreeing(
    contenders: Mapping[str, Contender], reference: str, within: float | None = None
) -> tuple[dict[str, Contender], list[str]]:
    """Leave out who computes something else than the reference; return the others, and notes.

    Args:
        contenders: by name.
        reference: one of the names.
        within: how far they may be apart; by default :data:`AGREES`, in bfloat16
            :data:`AGREES_BF16`.
    """
    right, notes = {}, []
    expected = contenders[reference].found()
    for name, contender in contenders.items():
        gap = distance(contender.found(), expected)
        usual = AGREES_BF16 if name in ALL_IN_BF16 else AGREES
        if gap <= (usual if within is None else within):
            right[name] = contender
        else:
            notes.append(f"{name} is not timed, it is {gap:.1g} away from {reference}")
    return right, notes


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest difference between tensors, in multiples of each one's greatest entry."""
    gaps = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
    ]
    return max(gaps)
