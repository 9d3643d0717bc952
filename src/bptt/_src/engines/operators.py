"""The engines as operators of torch, for whoever looks at operations from outside.

``torch.compile``, ``torch.export``, ``make_fx``, AOTAutograd and fake tensors see a call of a layer
as one operation, whatever the number of steps, and know its shapes and its gradient. An eager call
does without, because an operator costs more than a small call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from bptt._src.engines import looped, native, reference, twin
from bptt._src.engines.backend import is_chosen_native
from bptt._src.engines.call import Call, Engine, Saved
from bptt._src.engines.define import differentiate, operator, shapes_of
from bptt._src.engines.guard import is_exporting, is_watched
from bptt._src.engines.plan_operator import Crossing, windows_in
from bptt._src.engines.recording import cell_of, name_of_cell
from bptt._src.engines.sequence import gradients
from bptt._src.rows import boundary_of
from bptt._src.steps import Steps
from bptt.cells import Cell, State, Weights

_OPERANDS = """
    str cell, str engine, Tensor x, Tensor[] state,
    Tensor ih, Tensor hh, Tensor? b_ih, Tensor? b_hh, Tensor? hr, Tensor? units,
    Tensor? sizes, bool reverse, Tensor? carry, Tensor? resets,
    Tensor? blocks, bool by_windows, bool to_windows, bool all_states, bool bf16
"""
_SEQUENCE = f"({_OPERANDS}) -> Tensor[]"
_BACKWARD = f"""(
    Tensor? d_y, Tensor?[] d_rest, {_OPERANDS}, Tensor[] saved, bool[] needed
) -> Tensor[]"""


class _Operands:
    """The operands of the operators, in the order of their schema; sizes may be symbols."""

    def __init__(self, *operands: Any) -> None:
        self.cell, self.engine = cell_of(operands[0]), operands[1]
        self.x, state, *w = operands[2:10]
        self.state, self.w = tuple(state), Weights(*w)
        self.sizes, self.reverse, self.carry, self.resets, self.blocks = operands[10:15]
        self.by_windows, self.to_windows, self.all_states, self.bf16 = operands[15:]

    @property
    def steps_and_batch(self) -> Any:
        """[T, B] of what is not packed."""
        return self.x.shape[:2] if self.carry is None else self.carry.shape

    def tensors(self) -> tuple[Any, ...]:
        """Those that may need a gradient: x, the initial state, the weights."""
        return (self.x, *self.state, *self.w)

    def kept(self, rows: Any) -> list[tuple[Any, ...]]:
        """The shapes of what the engine keeps of so many rows."""
        if not self.engine:
            return []
        w, hidden = self.w, int(self.cell.hidden(self.w))
        biases = (w.b_ih is not None, w.b_hh is not None)
        outputs = hidden if w.hr is None else int(w.hr.shape[0])
        of_a_row = _kept_of_a_row(self.cell, self.engine, self.x.dtype, hidden, outputs, biases)
        return [(rows * first, *rest) for first, *rest in of_a_row]

    @property
    def rows(self) -> tuple[Any, ...]:
        """[T, B], or [N] where they are packed: of outputs that are not laid out by windows."""
        return tuple(self.x.shape[:1] if self.sizes is not None else self.steps_and_batch)

    def call(self) -> Call:
        if self.sizes is None:
            T, B = self.steps_and_batch
            sizes = (B,) * T
        else:
            sizes = tuple(self.sizes.tolist())
        boundary = boundary_of(sizes, self.carry, self.resets, self.reverse)
        steps, windows = Steps(sizes, self.reverse), windows_in(self.blocks, sizes, self.x.device)
        x, state = self.x, self.state
        if windows is not None:
            x, state = x.flatten(0, -2), tuple(s.flatten(0, -2) for s in state)
            if self.by_windows:
                x = x.index_select(0, windows.own)
        rest = windows, self.by_windows and windows is not None, self.all_states, self.bf16
        return Call(self.cell, x, state, self.w, steps, boundary, *rest)


def _laid_out_like(x: Tensor, t: Tensor) -> Tensor:
    """The same rows, [T, B, ...] or [N, ...] as those of x are."""
    if t.dim() == x.dim():
        return t
    return t.flatten(0, -2) if x.dim() == 2 else t.unflatten(0, x.shape[:-1])


@operator("sequence", _SEQUENCE)
def _sequence(*operands: Any) -> list[Tensor]:
    """Run a layer in one direction: the outputs, the final state, the states but h after each step
    where all are asked for, and what is kept if anything is.
    """
    of = _Operands(*operands)
    call = of.call()
    engine: Any = _engine(of) if call.x.numel() else twin
    y, final, kept = engine.forward(call, keep=bool(of.engine) or of.all_states)
    others = [s.clone() for s in engine.other_states(call, kept)] if of.all_states else []
    if not call.x.numel():
        kept = tuple(call.x.new_empty(shape) for shape in of.kept(0))
    rows = [y, *others]
    if not of.to_windows:
        rows = [t.view(*of.rows, t.shape[-1]) for t in rows]
    else:
        rows = [t.flatten(0, -2) for t in rows]
        if call.windows is not None:
            rows = [t.index_select(0, call.windows.rows) for t in rows]
    if call.windows is not None:
        final = tuple(a.view(b.shape) for a, b in zip(final, of.state, strict=True))
    return [rows[0], *final, *rows[1:], *(kept if of.engine else ())]


@shapes_of("sequence")
def _(*operands: Any) -> list[Tensor]:
    of = _Operands(*operands)
    rows = of.rows
    if of.sizes is not None and of.by_windows:  # their number is known by the windows only
        rows = (_unknown(rows[0]),)
    kept = of.kept(math.prod(rows))
    if of.to_windows:
        rows = (_unknown(math.prod(rows)),)
    y, *others = [(*rows, s.shape[-1]) for s in of.state]
    shapes = (y, *(s.shape for s in of.state), *(others if of.all_states else ()), *kept)
    return [of.x.new_empty(shape) for shape in shapes]


def _unknown(rows: int) -> int:
    """A number of rows that depends on the plan: a symbol; where a mode knows none, that of all."""
    try:
        return cast(int, torch.library.get_ctx().new_dynamic_size())
    except torch._subclasses.fake_tensor.DynamicOutputShapeException:
        return rows


@operator("sequence_backward", _BACKWARD)
def _sequence_backward(d_y: Any, d_rest: Any, *given: Any) -> list[Tensor]:
    """Go back through it: the gradients that are needed, of x, the initial state, the weights."""
    *operands, saved, needed = given
    of = _Operands(*operands)
    call = of.call()
    wanted = [t for t, need in zip(of.tensors(), needed, strict=True) if need]
    if not call.x.numel():
        return [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in wanted]
    engine, windows, y, kept = _engine(of), call.windows, saved[0], tuple(saved[1:])
    if not of.engine:
        y, _, kept = engine.forward(call, keep=True)
    elif of.to_windows and windows is not None:
        y = y.index_select(0, windows.own)
    grads = _of_results(call, d_y, d_rest)
    if windows is not None and not of.to_windows:
        for i in (0, *range(1 + len(of.state), len(grads))):
            if (d := grads[i]) is not None:
                whole = d.new_zeros(len(windows.rows), d.shape[1])
                grads[i] = whole.index_copy_(0, windows.own, d)
    saved = Saved(_laid_out_like(call.x, y), kept)
    with nullcontext() if engine is native and not is_watched() else autograd_inside():
        found = gradients(engine, call, saved, tuple(grads), tuple(needed))
    of_wanted = [d for d, need in zip(found, needed, strict=True) if need]
    return [
        t.new_zeros(t.shape) if d is None else d if d.shape == t.shape else d.view(t.shape)
        for d, t in zip(of_wanted, wanted, strict=True)
    ]


def _of_results(call: Call, d_y: Any, d_rest: Any) -> list[Tensor | None]:
    """The gradients of an operator's results, laid out like those of the call."""
    n = len(call.state)
    states, others = d_rest[:n], [None if d is None else d.flatten(0, -2) for d in d_rest[n:]]
    if call.windows is not None:
        states = [None if d is None else d.flatten(0, -2) for d in states]
    return [None if d_y is None else _laid_out_like(call.x, d_y), *states, *others]


@contextmanager
def autograd_inside() -> Iterator[None]:
    """Make autograd work inside an operator, where a cell's equations are differentiated."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, name))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.no_grad():
        yield


@shapes_of("sequence_backward")
def _(d_y: Any, d_rest: Any, *given: Any) -> list[Tensor]:
    *operands, _, needed = given
    tensors = _Operands(*operands).tensors()
    return [t.new_empty(t.shape) for t, need in zip(tensors, needed, strict=True) if need]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    of = _Operands(*inputs)
    ctx.results = len(of.state) + (len(of.state) - 1 if of.all_states else 0)
    kept = output[1 + ctx.results :]
    ctx.save_for_backward(*of.tensors(), of.sizes, of.carry, of.resets, of.blocks, output[0], *kept)
    ctx.cell, ctx.engine, ctx.states = inputs[0], of.engine, len(of.state)
    ctx.flags = of.reverse, of.by_windows, of.to_windows, of.all_states, of.bf16
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    n = 1 + ctx.states
    x, *rest = ctx.saved_tensors
    state, w, rest = rest[: n - 1], rest[n - 1 : n + 5], rest[n + 5 :]
    between, saved = rest[:4], rest[4:]
    reverse, *flags = ctx.flags
    operands = (ctx.cell, ctx.engine, x, state, *w, between[0], reverse, *between[1:], *flags)
    of_x, of_state, *of_w = ctx.needs_input_grad[2:10]
    needed = [of_x, *_of_each(of_state, n - 1), *of_w]
    d_y, *d_rest = grads[: 1 + ctx.results]
    if torch.is_grad_enabled():
        d = _differentiable(_Operands(*operands), (d_y, *d_rest), tuple(needed))
    else:
        run = torch.ops.bptt.sequence_backward.default
        found = iter(run(d_y, d_rest, *operands, saved, needed))
        d = [next(found) if need else None for need in needed]
    return (None, None, d[0], d[1:n], *d[n:], *(None,) * 9)


def _differentiable(
    of: _Operands, grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The same gradients step by step through the cell, to be differentiated again."""
    call = of.call()
    found = reference.gradients(call, tuple(_of_results(call, grads[0], grads[1:])), needed)
    return [
        None if d is None else d.view(t.shape) for d, t in zip(found, of.tensors(), strict=True)
    ]


SEQUENCE = torch.ops.bptt.sequence.default


def _of_each(needed: Any, n: int) -> list[bool]:
    return list(needed) if isinstance(needed, (list, tuple)) else [bool(needed)] * n


differentiate("sequence", _backward, _keep_for_backward)


@lru_cache(maxsize=256)
def _kept_of_a_row(
    cell: Cell,
    engine: str,
    dtype: torch.dtype,
    hidden: int,
    outputs: int,
    biases: tuple[bool, bool],
) -> tuple[tuple[int, ...], ...]:
    """The shapes of what an engine keeps of a sequence of one row: it grows with the rows."""
    with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
        of_x, of_h = cell.gates_x * hidden, cell.gates_h * hidden
        shapes = (
            *((of_x, 1), (of_h, outputs)),
            (of_x,) if biases[0] else None,
            (of_h,) if biases[1] else None,
            (outputs, hidden) if outputs != hidden else None,
            (cell.units, hidden) if cell.units else None,
        )
        w = Weights(*(None if s is None else torch.zeros(s, dtype=dtype) for s in shapes))  # type: ignore[arg-type]
        sizes = (outputs, *(hidden,) * (cell.states - 1))
        state = tuple(torch.zeros(1, n, dtype=dtype) for n in sizes)
        x = torch.zeros(1, 1 + cell.masks * hidden, dtype=dtype)
        call = Call(cell, x, state, w, Steps((1,)))
        _, _, kept = _ENGINES[engine].forward(call, keep=True)
    return tuple(tuple(k.shape) for k in kept)


# ------------------------------------------------------------------------- which engine

_ENGINES = {
    name: cast(Engine, e)
    for name, e in zip(("native", "looped", "twin"), (native, looped, twin), strict=True)
}


def _engine(of: _Operands) -> Engine:
    """The engine that was chosen when the graph was recorded, or that serves now."""
    return _ENGINES[of.engine or _engine_for(of.cell, of.x, of.w)]


def _engine_for(cell: Cell, x: Tensor, w: Weights) -> str:
    if not is_chosen_native():
        return "twin"
    if native.refuses_kind(cell, x, w) is None:
        return "native"
    return "twin" if looped.refuses_kind(cell, x, w) else "looped"


def sequence(
    cell: Cell,
    x: Tensor,
    state: State,
    w: Weights,
    crossing: Crossing,
    *,
    sizes: Tensor | None,
    reverse: bool,
    by_windows: bool,
    to_windows: bool,
    all_states: bool,
    bf16: bool,
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    """Run a layer in one direction, as :func:`engines.sequence.sequence`, as one operation.

    Args:
        cell: the cell.
        x: the inputs, [T, B, I]; packed, [N, I]; or laid out by windows.
        state: the initial state, each of its tensors [1, B, ...].
        w: the weights.
        crossing: what happens between the steps.
        sizes: ``batch_sizes`` of a PackedSequence.
        reverse: whether the last step comes first.
        by_windows: whether x is laid out by the windows of the plan's blocks.
        to_windows: whether the outputs are to be.
        all_states: whether the states but h after each step are wanted.
        bf16: whether products may be of bfloat16.
    """
    engine = ""
    wanted = any(t is not None and t.requires_grad for t in (x, *state, *w))
    if wanted and torch.is_grad_enabled() and not is_exporting():  # that runs on any machine
        engine = _engine_for(cell, x, w)
    operands = (name_of_cell(cell), engine, x, list(state), *w, sizes, reverse)
    y, *rest = SEQUENCE(*operands, *crossing, by_windows, to_windows, all_states, bf16)
    n = cell.states
    return y, tuple(rest[:n]), tuple(rest[n : 2 * n - 1]) if all_states else ()
