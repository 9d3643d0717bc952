"""The operators in ONNX's terms, for the exporter behind ``torch.onnx.export(dynamo=True)``.

A layer of a cell that ONNX has becomes one of its operators, RNN, GRU or LSTM, in each direction.
The exporter looks implementations up in a registry of its own, where these are entered when it is
first loaded; a torch without that registry says that it knows no ``bptt.sequence``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import torch

from bptt._src.when_loaded import when_loaded
from bptt.cells import Cell, Weights


class OnnxOperator(NamedTuple):
    """An operator of ONNX that is a cell's layer."""

    name: str
    blocks: tuple[int, ...]
    """The cell's blocks of gates, in the order of the operator."""
    options: dict[str, Any]


OPERATORS = {
    "RNN_TANH": OnnxOperator("RNN", (0,), {"activations": ["Tanh"]}),
    "RNN_RELU": OnnxOperator("RNN", (0,), {"activations": ["Relu"]}),
    "RNN_SIGMOID": OnnxOperator("RNN", (0,), {"activations": ["Sigmoid"]}),
    "GRU": OnnxOperator("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "LSTM": OnnxOperator("LSTM", (0, 3, 1, 2), {}),
}


def has_operator(cell: Cell, w: Weights) -> bool:
    """Whether ONNX has an operator for a layer: of this cell, and without a projection."""
    return cell.name in OPERATORS and w.hr is None


def _sequence(
    cell: str,
    engine: str,
    x: Any,
    state: Any,
    ih: Any,
    hh: Any,
    b_ih: Any,
    b_hh: Any,
    hr: Any,
    units: Any,
    sizes: Any,
    reverse: bool,
    carry: Any,
    resets: Any,
    blocks: Any,
    by_windows: bool,
    to_windows: bool,
    all_states: bool,
    bf16: bool,
) -> list[Any]:
    """A layer in one direction; ``carry`` says something of its gradient alone."""
    op = _operators()
    kind = OPERATORS.get(cell)
    without = hr is None and sizes is None and resets is None
    if kind is None or not without or by_windows or to_windows or all_states:
        raise NotImplementedError(
            "bptt: ONNX has no operator for what this program of torch.export holds: resets, "
            "states of each step, a PackedSequence, a projection, another cell or a credit "
            "recorded for training. Give torch.onnx.export the module itself, not the program"
        )
    hidden = hh.shape[1]

    def in_order(t: Any) -> Any:
        of = [op.Slice(t, [i * hidden], [(i + 1) * hidden], [0]) for i in kind.blocks]
        return of[0] if len(of) == 1 else op.Concat(*of, axis=0)

    bias = None
    if b_ih is not None:
        bias = op.Unsqueeze(op.Concat(in_order(b_ih), in_order(b_hh), axis=0), [0])
    w = (op.Unsqueeze(in_order(t), [0]) for t in (ih, hh))
    direction = "reverse" if reverse else "forward"
    options = {**kind.options, "hidden_size": hidden, "direction": direction}
    y, *final = getattr(op, kind.name)(x, *w, bias, None, *state, **options)
    return [op.Squeeze(y, [1]), *final[: len(state)]]


def _operators() -> Any:
    """ONNX's own operators, as the exporter asks for them."""
    import onnxscript

    return onnxscript.opset18


def _plan(credit: str, steps: Any, batch: Any, where: str, both: bool) -> list[Any]:
    """A credit's plan, of which outputs take nothing: any tensors of its ranks."""
    op = _operators()
    return [op.Constant(value_floats=[1.0]), op.Constant(value_ints=[-1])]


def _register(operators_of_torch: ModuleType) -> None:
    registry = sys.modules.get(f"{_TORCHLIB}._torchlib_registry")
    enter = getattr(registry, "onnx_impl", None)
    if enter is not None:
        enter(torch.ops.bptt.sequence.default, no_compile=True)(_sequence)
        enter(torch.ops.bptt.plan.default, no_compile=True)(_plan)


_TORCHLIB = "torch.onnx._internal.exporter._torchlib"
when_loaded(f"{_TORCHLIB}.ops", _register)
