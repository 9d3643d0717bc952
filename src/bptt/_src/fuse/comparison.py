"""A fused cell against autograd on the cell itself, step by step, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bptt._src.engines.loops.step import quietly
from bptt._src.fuse.fusion import Fusion
from bptt._src.fuse.step import CellStep
from bptt._src.fuse.tracing import Example
from bptt.errors import FuseError

_SIZES = ((4, 3), (1, 1), (1, 67))
"""Numbers of steps and of sequences: a cell may do something else for one sequence, or many."""
_TOLERANCE = 1e-8


def check_against_autograd(step: CellStep, plan: Fusion, example: Example) -> None:
    """Compare outputs, states and all gradients on random inputs and states, at some sizes.

    Args:
        step: the step of the cell.
        plan: what is compared with it, in float64.
        example: of what the cell is given, in float64.

    Raises:
        bptt.errors.FuseError: they differ.
    """
    for T, B in _SIZES:
        _check(step, plan, example, T, B)


def _check(step: CellStep, plan: Fusion, example: Example, T: int, B: int) -> None:
    with quietly():
        x = [example.of_batch(B, seed=t).x for t in range(T)]
        xs = [torch.stack(each) for each in zip(*x, strict=True)]
        states, own = example.of_batch(B).state, list(example.own.values())
        given = [[_leaf(t) for t in each] for each in (xs, states, own)]
        try:
            expected = _by_steps(step, list(example.own), *given)
        except (RuntimeError, TypeError, ValueError, IndexError) as e:
            raise FuseError(
                f"bptt.fuse: for a batch of {B} the cell raises {type(e).__name__}: "
                f"{(str(e).splitlines() or [''])[0]}"
            ) from e
        if step.output != plan.output:
            raise FuseError(
                "bptt.fuse: the output of the step has another form, or another number in it that "
                f"is no tensor, at another call or for a batch of {B}"
            )
        generator = torch.Generator().manual_seed(0)
        ds = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64)
            if y.requires_grad
            else None
            for y in expected
        ]
        of_expected = _gradients(expected, given, ds)
        try:
            outputs, after = plan.run(T, B, *given)
        except RuntimeError as e:
            raise FuseError(
                f"bptt.fuse: fused, {T} steps of {B} sequences raise {str(e).splitlines()[0]}: "
                "does the cell use .squeeze() without a dimension?"
            ) from e
        found = [*outputs, *after]
        of_found = _gradients(found, given, ds)
    names = [f"output {i}" for i in range(len(outputs))]
    names += [f"state {i}" for i in range(len(after))]
    pairs: list[tuple[str, Tensor | None, Tensor | None]]
    pairs = [*zip(names, found, expected, strict=True)]
    inputs = [f"x_t ({i})" for i in range(len(xs))] + [f"state {i}" for i in range(len(states))]
    wanted = [f"the gradient of {n}" for n in (*inputs, *example.own)]
    pairs += zip(wanted, of_found, of_expected, strict=True)
    for name, a, b in pairs:
        if not _close(a, b):
            raise FuseError(
                f"bptt.fuse: fused, {name} is not what autograd finds step by step, for {B} "
                "sequences: does the cell keep something in itself from step to step (hand it on "
                "in the state), decide by the size of the batch, or change something in place "
                "under torch.no_grad()?"
            )


def _leaf(t: Tensor) -> Tensor:
    t = t.detach().clone()
    return t.requires_grad_() if t.is_floating_point() else t


def _by_steps(
    step: CellStep, names: list[str], xs: list[Tensor], state: list[Tensor], own: list[Tensor]
) -> list[Tensor]:
    named = dict(zip(names, own, strict=True))
    outputs = []
    for t in range(len(xs[0])):
        output, state = step([x[t] for x in xs], state, named)
        outputs.append(output)
    return [torch.stack(each) for each in zip(*outputs, strict=True)] + list(state)


def _gradients(
    found: list[Tensor], given: list[list[Tensor]], ds: Sequence[Tensor | None]
) -> list[Tensor | None]:
    leaves = [t for each in given for t in each]
    wanted = [t for t in leaves if t.requires_grad]
    pairs = [(y, d) for y, d in zip(found, ds, strict=True) if d is not None and y.requires_grad]
    if not pairs or not wanted:
        return [None] * len(leaves)
    ys, of_ys = zip(*pairs, strict=True)
    grads = iter(torch.autograd.grad(ys, wanted, of_ys, allow_unused=True))
    return [next(grads) if t.requires_grad else None for t in leaves]


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        one = b if a is None else a
        return one is None or not bool(one.any())
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.detach().abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a, b, _TOLERANCE, _TOLERANCE * max(scale, 1e-30), equal_nan=True)
