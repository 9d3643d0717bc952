"""Layers in what ``torch.onnx.export`` writes.

A layer of a cell that ONNX has is one of its operators (:mod:`bptt._src.engines.onnx_operators`).
Of any other, and of one with resets, the equations of a step are written down, under an operator
Scan that repeats them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from bptt._src.engines import operators
from bptt._src.engines.onnx_operators import has_operator
from bptt._src.engines.plan_operator import Crossing
from bptt._src.run_layer import Draw
from bptt._src.uncompiled import at_compile_time
from bptt.cells import Cell, State, Weights


@at_compile_time
def is_onnx_export() -> bool:
    """Whether ``torch.onnx.export`` records the operations, by either of its exporters."""
    onnx: Any = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


def is_by_tracing(called: str, input: object, simple: bool) -> bool:
    """Whether it is the older exporter, with ``dynamo=False``, which writes what torch.nn has.

    Args:
        called: what messages name.
        input: the module's.
        simple: whether torch.nn has the module and the call, for that exporter to write.

    Raises:
        RuntimeError: the exporter cannot write this.
    """
    if torch._C._get_tracing_state() is not None:
        if not simple:
            raise RuntimeError(
                f"{called}: torch.onnx.export(dynamo=False) writes no resets, states of each "
                "step, projection, zoneout or cell of bptt's own: leave out dynamo=False"
            )
        return True
    if isinstance(input, PackedSequence):
        raise RuntimeError(
            f"{called}: torch.onnx.export takes no PackedSequence: give the padded tensor, or "
            "export with dynamo=False"
        )
    return False


class Exported:
    """As an operator each, or as a Scan over the equations."""

    def __init__(self, resets: Tensor | None, all_states: bool) -> None:
        """``resets`` are [T, B]."""
        self.resets, self.all_states = resets, all_states

    def layer(
        self, cell: Cell, x: Tensor, state: State, w: Weights, reverse: bool, number: int
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        others = self.all_states and cell.states > 1
        if self.resets is not None or others or not has_operator(cell, w):
            y, final, each = _scanned(cell, x, state, w, reverse, self.resets)
            return y, final, each if others else ()
        return operators.sequence(
            *(cell, x, state, w, Crossing()),
            sizes=None,
            reverse=reverse,
            by_windows=False,
            to_windows=False,
            all_states=False,
            bf16=False,
        )

    def drop_out(self, x: Tensor, p: float, training: bool) -> Tensor:
        return nn.functional.dropout(x, p, training)

    def drawn(self, draw: Draw, x: Tensor, number: int) -> Tensor:
        raise RuntimeError(
            "bptt: torch.onnx.export writes no masks of zoneout: export in evaluation mode, after "
            "module.eval()"
        )

    def result(self, x: Tensor, last: bool = True) -> Tensor:
        return x


def _scanned(
    cell: Cell, x: Tensor, state: State, w: Weights, reverse: bool, resets: Tensor | None
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a layer in one direction by torch's operator ``scan``, which repeats a step.

    Returns:
        The outputs, the final state, and the states but h after each step.
    """
    from torch._higher_order_ops.scan import scan_op

    given = [linear(x, w.ih, w.b_ih)]
    if resets is not None:
        if reverse:  # the state comes to a step over the boundary with the next one
            resets = torch.cat([resets[1:], torch.zeros_like(resets[:1])])
        given.append(resets.unsqueeze(2))
    if reverse:
        given = [t.flip(0) for t in given]
    weights = [t for t in (w.hh, w.b_hh, w.hr, w.units) if t is not None]
    n, inputs = len(state), len(given)

    def step(*operands: Tensor) -> list[Tensor]:
        before, (of_x, *reset) = operands[:n], operands[n : n + inputs]
        rest = iter(operands[n + inputs :])
        hh = next(rest)
        b_hh, hr, units = [None if t is None else next(rest) for t in w[3:]]
        if reset:
            before = tuple(torch.where(reset[0], torch.zeros_like(s), s) for s in before)
        of_h = linear(before[0], hh, b_hh).chunk(cell.gates_h, dim=-1) if cell.gates_h else ()
        of_units = () if units is None else units.unbind(0)
        after = cell.equations(of_x.chunk(cell.gates_x, dim=-1), of_h, before, of_units)
        after = after if hr is None else (linear(after[0], hr), *after[1:])
        return [*after, *(s.clone() for s in after)]

    begin = [s.squeeze(0).clone() for s in state]  # h and c may be one tensor
    found = scan_op(step, begin, given, tuple(weights))
    y, *others = [s.flip(0) if reverse else s for s in found[n:]]
    return y, tuple(s.unsqueeze(0) for s in found[:n]), tuple(others)
