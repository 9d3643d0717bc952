"""The loop of a fused cell over all steps, and back, natively, as one function of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd import Function

from bptt._src.engines.guard import dense, is_watched, only_by_autograd
from bptt._src.engines.kernel_library import type_of
from bptt._src.engines.loops.loop import Columns, Loop
from bptt._src.engines.loops.shapes import NotAProgram
from bptt._src.engines.loops.step import Sizes
from bptt._src.engines.product import multiply
from bptt._src.fuse import tape
from bptt._src.fuse.splitting import SplitStep
from bptt.errors import FuseError


@dataclass(frozen=True)
class Recurrence:
    """The loop of a split step.

    Its tensors are in this order: rows [N, width] each, states [B, width], vectors [1, width] and
    weights.
    """

    loop: Loop
    step: fx.GraphModule
    lefts: list[tuple[str, int]]
    products: list[tuple[int, bool]]
    counts: tuple[int, int, int, int]

    @classmethod
    def of(cls, split: SplitStep, states: tuple[int, ...], dtype: torch.dtype) -> Recurrence:
        """Make the programs.

        Raises:
            bptt.errors.FuseError: a program has no instruction for something.
        """
        sizes = Sizes(split.rows, states, split.vectors, split.weights, split.adds)

        def step(*parts: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            flat = [t for part in parts for t in part]
            found: tuple[Sequence[Tensor], Sequence[Tensor]] = split.loop(len(parts[1][0]), *flat)
            return found

        def places(name: str, n: int) -> list[Columns]:
            return [Columns(f"{name} {i}") for i in range(n)]

        try:
            loop = Loop(
                step,
                sizes,
                dtype,
                row_places=places("row", len(split.rows)),
                vector_places=places("vector", len(split.vectors)),
                weights=[c.name for c in places("weight", len(split.weights))],
                add_places=places("add", len(split.adds)),
                shares=True,
            )
            loop.forward, loop.inference, loop.backward((True,) * len(states))
        except NotAProgram as e:
            raise FuseError(
                f"bptt.fuse: in the loop over the steps, {e}: compute it before the loop, from "
                "x_t alone, or after it, in what the state does not depend on; or run the cell "
                "step by step: bptt.Stepwise(cell)"
            ) from e
        counts = len(split.rows), len(states), len(split.vectors), len(split.weights)
        return cls(loop, split.loop, split.lefts, split.products, counts)

    @cached_property
    def gradients(self) -> list[tuple[str, int, bool]]:
        """Name, width, and whether nothing reaches it: of the rows, vectors and adds."""
        found, loop, sizes = [], self.loop, self.loop.sizes
        for part, widths in (("row", sizes.rows), ("add", sizes.adds), ("vector", sizes.vectors)):
            unused = loop.unused(f"{part}s")
            for i, n in enumerate(widths):
                if (name := f"{part} {i}") not in loop.shared:
                    found.append((f"of {name}", n, i in unused))
        return found

    def parts(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Return rows, states, vectors and weights."""
        found, at = [], 0
        for n in self.counts:
            found.append(tensors[at : at + n])
            at += n
        return found

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the rows, vectors and weights by their names."""
        rows, _, vectors, weights = self.parts(tensors)
        found = {}
        for name, each in (("row", rows), ("vector", vectors), ("weight", weights)):
            for i, t in enumerate(each):
                found[f"{name} {i}"] = _by_rows(name, t)
        return found

    def __call__(
        self, T: int, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Run over T steps.

        Returns:
            The states after each step, [N, width]; the step's other results, likewise; and the
            final states, [B, width].
        """
        S, outs = self.counts[1], len(self.loop.outputs)
        found: Sequence[Tensor]
        if is_watched() or only_by_autograd(*tensors) is not None:
            found = self.replay(T, tensors)
        elif torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            found = _OverSteps.apply(self, T, *tensors)
        else:
            found = _run(self, T, tensors, tape.is_taken_down()).results
        return list(found[:S]), list(found[S : S + outs]), list(found[S + outs :])

    def replay(self, T: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run over T steps by torch's own operations, to be differentiated any number of times."""
        rows, states, vectors, weights = self.parts(tensors)
        B, state, each = len(states[0]), list(states), []
        adds = [states[0].new_zeros(B, n) for n in self.loop.sizes.adds]
        for t in range(T):
            own = [r[t * B : (t + 1) * B] for r in rows]
            state, outs = self.step(B, *own, *state, *vectors, *weights, *adds)
            each.append([*state, *outs])
        return [torch.cat(found) for found in zip(*each, strict=True)] + list(state)


def _by_rows(name: str, t: Tensor) -> Tensor:
    """Return a matrix whose rows are dense, each by itself."""
    if t.dim() == 2 and t.stride(1) == 1 and not t.is_neg() and t.stride(0) >= t.shape[1]:
        return t
    return dense(name, t, t.dtype, tuple(t.shape))


class _LoopRun(NamedTuple):
    """A run over the steps, T steps of B sequences in N rows."""

    states: list[Tensor]
    """Before the first step and after each, [B + N, width]."""
    outs: list[Tensor]
    kept: Tensor
    results: list[Tensor]
    """As :meth:`Recurrence.__call__` gives them."""


def _run(of: Recurrence, T: int, tensors: Sequence[Tensor], keep: bool) -> _LoopRun:
    loop, before = of.loop, of.parts(tensors)[1]
    B, new = before[0].shape[0], before[0].new_empty
    N = T * B
    walks = [new(B + N, n) for n in loop.sizes.states]
    for walk, s in zip(walks, before, strict=True):
        walk[:B] = s
    outs = [new(N, n) for n in loop.outputs]
    finals = [new(B, n) for n in loop.sizes.states]
    # No views in autograd's eyes, which could not be changed in place.
    after = [walk[B:].detach() for walk in walks]
    places = of.named(tensors)
    places |= {f"after {i}": t for i, t in enumerate(after)}
    places |= {f"out {i}": t for i, t in enumerate(outs)}
    kept = places["kept"] = new(N, loop.kept if keep else 0)
    (loop.forward if keep else loop.inference).run(
        places,
        list(zip(walks, finals, strict=True)),
        (B,) * T,
        type_=type_of(loop.dtype, False),
        last_first=False,
    )
    if keep:
        tape.note(*walks, *outs, kept)
    return _LoopRun(walks, outs, kept, [*after, *outs, *finals])


class _OverSteps(Function):
    @staticmethod
    def forward(ctx: Any, of: Recurrence, T: int, *tensors: Tensor) -> Any:
        S, outs = of.counts[1], len(of.loop.outputs)
        known = tape.again(S + outs + 1)
        if known is None:
            walk = _run(of, T, tensors, True)
        else:
            B = len(of.parts(tensors)[1][0])
            after, finals = [w[B:].detach() for w in known[:S]], [w[-B:].clone() for w in known[:S]]
            results = [*after, *known[S:-1], *finals]
            walk = _LoopRun(known[:S], known[S:-1], known[-1], results)
        ctx.of, ctx.T, ctx.tensors = of, T, len(tensors)
        ctx.save_for_backward(*tensors, *walk.states, *walk.outs, walk.kept)
        ctx.set_materialize_grads(False)
        return tuple(walk.results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        of, T = ctx.of, ctx.T
        tensors, results = ctx.saved_tensors[: ctx.tensors], ctx.saved_tensors[ctx.tensors :]
        needed = ctx.needs_input_grad[2:]
        odd = is_watched() or only_by_autograd(*tensors, *grads) is not None
        if torch.is_grad_enabled() or odd:
            return None, None, *_by_autograd(of, T, tensors, grads, needed)
        return None, None, *_natively(of, T, tensors, results, grads, needed)


def _by_autograd(
    of: Recurrence,
    T: int,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Compute the gradients step by step, so that they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            tensors = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        found = of.replay(T, tensors)
        pairs = [
            (y, d) for y, d in zip(found, grads, strict=True) if d is not None and y.requires_grad
        ]
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        if not pairs:
            return [None] * len(tensors)
        ys, ds = zip(*pairs, strict=True)
        of_wanted = iter(torch.autograd.grad(ys, wanted, ds, create_graph=again, allow_unused=True))
    return [next(of_wanted) if n else None for n in needed]


def _natively(
    of: Recurrence,
    T: int,
    tensors: Sequence[Tensor],
    results: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    loop, states, dtype = of.loop, of.parts(tensors)[1], of.loop.dtype
    R, S, V, _ = of.counts
    end = S + len(loop.outputs)
    walks, outs, kept = results[:S], results[S:end], results[-1]
    B, N = len(states[0]), len(kept)
    before, after = [w[:N] for w in walks], [w[B:] for w in walks]
    places = of.named(tensors)
    places["kept"] = kept
    for name, each in (("before", before), ("after", after), ("out", outs)):
        places |= {f"{name} {i}": t for i, t in enumerate(each)}
    for name, incoming in (("d after", grads[:S]), ("d out", grads[S:end])):
        for i, d in enumerate(incoming):
            if d is not None:
                places[f"{name} {i}"] = dense("a gradient", d, dtype, tuple(d.shape))
    for name, width, is_unused in of.gradients:
        places[name] = (kept.new_zeros if is_unused else kept.new_empty)(N, width)
    deltas = [
        torch.zeros_like(s, memory_format=torch.contiguous_format)
        if d is None
        else d.clone(memory_format=torch.contiguous_format)
        for d, s in zip(grads[end:], states, strict=True)
    ]
    loop.backward(tuple(d is not None for d in grads[:end])).run(
        places,
        [(d, d) for d in deltas],
        (B,) * T,
        type_=type_of(dtype, False),
        last_first=True,
    )

    def of_(name: str) -> Tensor:
        return places[f"of {loop.shared.get(name, name)}"]

    found: list[Tensor | None] = [of_(f"row {i}") for i in range(R)]
    found += deltas
    found += [of_(f"vector {i}").sum(0, keepdim=True) for i in range(V)]
    found += _of_weights(of, places, of_, needed[R + S + V :])
    return [d if n else None for d, n in zip(found, needed, strict=True)]


def _of_weights(
    of: Recurrence, places: dict[str, Tensor], of_: Callable[[str], Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Add up dW = leftᵀ delta, over all steps and all products with W."""
    found: list[Tensor | None] = [None] * len(needed)
    for k, ((name, i), (w, is_transposed)) in enumerate(zip(of.lefts, of.products, strict=True)):
        if needed[w]:
            sides = places[f"{name} {i}"], of_(f"add {k}")
            left, right = sides[::-1] if is_transposed else sides
            d, before = multiply(left.t(), right), found[w]
            found[w] = d if before is None else before + d
    return found
