"""A fused cell as an operator of torch, for whoever looks at operations from outside.

As layers are (:mod:`bptt._src.engines.operators`): one operation, whatever the number of steps. It
asks at each call whether the cell still is what was traced, as an eager call does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from bptt._src.engines.backend import is_chosen_native
from bptt._src.engines.guard import is_exporting
from bptt._src.engines.operators import autograd_inside
from bptt._src.engines.recording import name_of_step, step_of
from bptt._src.fuse import tape
from bptt._src.fuse.forms import built
from bptt._src.fuse.fusion import Fusion
from bptt._src.uncompiled import at_compile_time, object_of

_OPERANDS = "str step, Tensor[] xs, Tensor[] states, Tensor[] own"
_FORWARD = f"({_OPERANDS}, bool keep) -> Tensor[]"
_BACKWARD = f"(Tensor?[] grads, {_OPERANDS}, Tensor[] taken, bool[] needed) -> Tensor[]"


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What a graph names: a fused module, and what it was prepared to be."""

    module: Any
    plan: Fusion

    def now(self, xs: list[Tensor], states: list[Tensor]) -> Fusion:
        """Return how it is run now.

        Raises:
            RuntimeError: it is not run natively any more, or gives something else.
        """
        found: Fusion | str = self.module._plans.find(xs, states)[0]
        reason = "its outputs have other shapes or dtypes"
        if isinstance(found, Fusion) and found.layout == self.plan.layout:
            return found
        if isinstance(found, str):
            reason = found or "there are no steps, or a mode of torch has to see each operation"
        raise RuntimeError(
            f"bptt.fuse: a recorded graph, as torch.compile's, cannot run {self.module!r} as it "
            f"was when it was recorded: {reason}: record it again (torch.compiler.reset())"
        )


@custom_op("bptt::fused", mutates_args=(), schema=_FORWARD)
def _fused(
    step: str, xs: list[Tensor], states: list[Tensor], own: list[Tensor], keep: bool
) -> list[Tensor]:
    """Run over the steps: outputs, final states, the number of the plan, and what is taken down."""
    of: _Recorded = step_of(step)
    T, B = xs[0].shape[:2]
    if any(x.shape[:2] != (T, B) for x in xs) or any(len(s) != B for s in states):
        shapes = [list(t.shape) for t in (*xs, *states)]
        raise RuntimeError(f"bptt.fuse: inputs [{T}, {B}, ...] and states [{B}, ...], got {shapes}")
    with torch._C.DisableTorchFunction():
        if not B:
            return _of_nobody(of, T, keep)
        plan = of.now(xs, states)
        if keep:
            with tape.taken_down() as taken:
                found = _run(plan, xs, states, own)
        else:
            found, taken = _run(plan, xs, states, own), []
    found = [*found, torch.tensor(int(name_of_step(plan))), *taken]
    return _apart(found, [*xs, *states, *own])


def _of_nobody(of: _Recorded, T: int, keep: bool) -> list[Tensor]:
    """Return the results for no sequences."""
    layout, number = of.plan.layout, torch.tensor(int(name_of_step(of.plan)))
    if not all(has_rows for has_rows, _, _ in layout.outputs):
        raise RuntimeError("bptt.fuse: a recorded graph was given no sequences")
    return [
        number if t is None else torch.zeros(shape, dtype=t)
        for shape, t in _shapes(of.plan, T, 0, keep)
    ]


def _shapes(plan: Fusion, T: Any, B: Any, keep: bool) -> list[tuple[Any, torch.dtype | None]]:
    """Return shapes and dtypes of what the operator gives; None is that of the number."""
    layout, dtype = plan.layout, plan.dtype
    dtypes = [t for _, _, t in layout.outputs] + [dtype] * len(layout.states)
    found: list[tuple[Any, torch.dtype | None]]
    found = [*zip(layout.of_results(T, B), dtypes, strict=True), ((), None)]
    return found + [(shape, dtype) for shape in layout.of_taken(T, B) if keep]


def _apart(found: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    """Copy what is not dense, is part of something, or shares its memory with something else."""
    seen, apart = {t.untyped_storage()._cdata for t in given}, []
    for t in found:
        is_dense = t.is_contiguous() and not t.storage_offset()
        if not is_dense or t.untyped_storage()._cdata in seen:
            t = t.clone(memory_format=torch.contiguous_format)
        seen.add(t.untyped_storage()._cdata)
        apart.append(t.detach())
    return apart


@_fused.register_fake
def _(step: str, xs: Any, states: Any, own: Any, keep: bool) -> list[Tensor]:
    T, B = xs[0].shape[:2]
    return [
        xs[0].new_empty(shape, dtype=dtype or torch.int64)
        for shape, dtype in _shapes(step_of(step).plan, T, B, keep)
    ]


@custom_op("bptt::fused_backward", mutates_args=(), schema=_BACKWARD)
def _fused_backward(
    grads: list[Tensor | None],
    step: str,
    xs: list[Tensor],
    states: list[Tensor],
    own: list[Tensor],
    taken: list[Tensor],
    needed: list[bool],
) -> list[Tensor]:
    """Go back through it: the gradients that are needed, of inputs, states and what it owns."""
    given = [*xs, *states, *own]
    wanted = [t for t, n in zip(given, needed, strict=True) if n]
    found: list[Tensor | None] = [None] * len(wanted)
    if xs[0].shape[1]:
        leaves = [t.detach().requires_grad_(n) for t, n in zip(given, needed, strict=True)]
        number, *results = taken
        with torch._C.DisableTorchFunction(), autograd_inside(), torch.enable_grad():
            with tape.given_again(results) if results else nullcontext():
                parts = _parts(leaves, len(xs), len(states))
                ys = _run(step_of(str(int(number))), *parts)
            found = _gradients(ys, grads, [t for t in leaves if t.requires_grad])
    dense = [t.new_zeros(t.shape) if d is None else d for d, t in zip(found, wanted, strict=True)]
    return _apart(dense, [t for t in (*given, *taken, *grads) if t is not None])


def _parts(tensors: Sequence[Tensor], n: int, m: int) -> tuple[list[Tensor], ...]:
    """Return n inputs, m states, and what the cell owns."""
    return list(tensors[:n]), list(tensors[n : n + m]), list(tensors[n + m :])


def _run(plan: Fusion, xs: list[Tensor], states: list[Tensor], own: list[Tensor]) -> list[Tensor]:
    T, B = xs[0].shape[:2]
    outputs, after = plan.run(T, B, xs, states, own)
    return [*outputs, *after]


def _gradients(
    ys: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: list[Tensor], again: bool = False
) -> list[Tensor | None]:
    pairs = [(y, d) for y, d in zip(ys, grads, strict=True) if d is not None and y.requires_grad]
    if not pairs or not wanted:
        return [None] * len(wanted)
    of, ds = zip(*pairs, strict=True)
    return list(torch.autograd.grad(of, wanted, ds, allow_unused=True, create_graph=again))


@_fused_backward.register_fake
def _(
    grads: Any, step: str, xs: Any, states: Any, own: Any, taken: Any, needed: list[bool]
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, n in zip((*xs, *states, *own), needed, strict=True) if n]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.step, xs, states, own, _ = inputs
    ctx.sizes = len(xs), len(states), len(own)
    ctx.results = len(step_of(ctx.step).plan.layout.of_results(1, 1))
    ctx.save_for_backward(*xs, *states, *own, *output[ctx.results :])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    n, m, k = ctx.sizes
    given, taken = list(ctx.saved_tensors[: n + m + k]), list(ctx.saved_tensors[n + m + k :])
    needed = [
        bool(flag)
        for flags, count in zip(ctx.needs_input_grad[1:4], ctx.sizes, strict=True)
        for flag in (flags if isinstance(flags, list | tuple) else [flags] * count)
    ]
    grads, parts = grads[: ctx.results], _parts(given, n, m)
    if torch.is_grad_enabled():  # to be differentiated again: step by step
        ys = _run(step_of(ctx.step).plan, *parts)
        wanted = [t for t, need in zip(given, needed, strict=True) if need]
        found = iter(_gradients(ys, grads, wanted, again=True))
    else:
        run = torch.ops.bptt.fused_backward.default
        found = iter(run(grads, ctx.step, *parts, taken, needed))
    d = [next(found) if need else None for need in needed]
    return None, d[:n], d[n : n + m], d[n + m :], None


_fused.register_autograd(_backward, setup_context=_keep_for_backward)


# ----------------------------------------------------------------------------- what records


@at_compile_time
def _prepared(number: int, training: tuple[bool, ...], *dtypes: torch.dtype) -> str:
    """Return the name of a module as it is now; empty if it does not run natively.

    Args:
        number: the ``id`` of the fused module.
        training: which of the cell's modules are in training mode, for the compiler to see it.
        dtypes: of the inputs and the states.
    """
    module: Any = object_of(number)
    plan = module._plan_of_example(dtypes)
    if not isinstance(plan, Fusion) or plan.layout.form is None:
        return ""
    name: str | None = module._recorded.get(plan)
    if name is None:
        name = module._recorded[plan] = name_of_step(_Recorded(module, plan))
        module._forms[name] = plan.layout.form, len(plan.layout.outputs)
    return name


def recorded(module: Any, inputs: Any, state: Any) -> tuple[Any, Any] | None:
    """Run a fused module for whoever records operations: as one of them.

    Returns:
        Outputs and final state; None where it cannot be run as one operation.
    """
    step = module._step
    if step.x.form is None or step.state.form is None or not is_chosen_native():
        return None
    xs = step.x.taken(inputs, "inputs")
    if any(x.dim() < 2 for x in xs):
        return None
    T, B = xs[0].shape[0], xs[0].shape[1]
    if state is None:
        states = module._zeros(xs, B)
    else:
        states = step.state.taken(state, "the state")
    given = [(x, (T, B)) for x in xs] + [(s, (B,)) for s in states]
    for (t, first), sizes in zip(given, module._sizes, strict=True):
        expected = (*first, *sizes)
        if t.dim() != len(expected) or any(a != b for a, b in zip(t.shape, expected, strict=True)):
            return None
    if T == 0 or B == 0:
        return None
    _, own = step.own()
    dtypes = [t.dtype for t in (*xs, *states)]
    name = _prepared(id(module), step.is_training(), *dtypes)
    if not name:
        return None
    wanted = any(t.requires_grad for t in (*xs, *states, *own))
    keep = wanted and torch.is_grad_enabled() and not is_exporting()
    found = torch.ops.bptt.fused.default(name, xs, states, own, keep)
    form, n = module._forms[name]
    return built(form, found[:n]), built(step.state.form, found[n : n + len(states)])
