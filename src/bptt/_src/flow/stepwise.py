"""All pairs in any other module: the gradients of many losses through each step together.

The module is run step by step, each step a graph of its own. Then its steps are gone back through
once, the last one first, and each step's vector-Jacobian product is taken of the gradients of all
the losses after it at once: T products, not T backward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bptt._src.autograd import batched_vjp
from bptt._src.credit.full import Full
from bptt._src.flow.contract import call, check_attached, check_batch, check_step, floats
from bptt._src.flow.cotangents import Cotangents
from bptt._src.flow.flow import StateFlow
from bptt._src.flow.given import Given
from bptt._src.flow.pairs import Found, Pairs
from bptt._src.layout import Layout, join, unwrapped
from bptt._src.pytree import is_float, map_tensors, named_leaves
from bptt._src.unroll.boundary import Boundaries
from bptt._src.unroll.calls import check_output


@dataclass
class _Step:
    """The graph of a step: its inputs and the state before it as leaves, and what came of them."""

    x: list[Tensor]
    before: list[Tensor]
    y: list[Tensor]
    after: list[Tensor]


def through_steps(
    given: Given,
    begin: Callable[[Any], Cotangents],
    pairs: Pairs,
    budget: int,
    attributed: bool,
    check: bool,
) -> Found:
    """Follow the losses of any module.

    Args:
        given: the module and what it is given.
        begin: gives ∂L_t/∂y_t for the outputs of all steps.
        pairs: which to follow.
        budget: bytes that the gradients of a step may take.
        attributed: whether to find the inputs' attribution.
        check: whether to make sure that the module's state is all in what it returns.

    Raises:
        TypeError: the module does not return outputs and a state.
        ValueError: a tensor of the state has no batch where it should be, or no gradient goes
            through it from call to call.
    """
    layout = given.layout
    steps, outputs, state = _run(given, pairs, check)
    start = begin(join(outputs, layout.time))
    names = _names(given.module, state)
    walk = _Walk(pairs, layout, budget, start.outputs, attributed)
    walk.norms = [pairs.empty(s.device) for s in _parts(floats(state), layout)]
    has_attribution = attributed and bool(steps[0].x)
    walk.attribution = pairs.empty(steps[0].x[0].device) if has_attribution else None
    for s in reversed(range(pairs.steps)):
        walk.back(s, steps[s])
        steps[s] = None  # type: ignore[call-overload]  # its graph is not needed any more
    found = [
        StateFlow(layer, name, pairs.completed(norms))
        for (layer, name), norms in zip(_named_parts(names, state, layout), walk.norms, strict=True)
    ]
    attribution = None if walk.attribution is None else pairs.completed(walk.attribution)
    return Found(start.losses, tuple(found), attribution)


def _run(given: Given, pairs: Pairs, check: bool) -> tuple[list[_Step], list[Any], Any]:
    """Run the module step by step; return the steps' graphs, their outputs and the final state."""
    layout, resets = given.layout, given.resets
    crossing = Boundaries(Full().plan(pairs.steps), resets, layout.state_dim, layout.batch)
    steps: list[_Step] = []
    outputs, state, checked = [], map_tensors(_detached, given.state), not check
    for t in range(pairs.steps):
        is_handed = bool(floats(state)) and not (resets is not None and bool(resets[t].all()))
        if is_handed and not checked and pairs.steps > 1:
            check_step(given, t, state)
            checked = True
        with torch.enable_grad():
            state = map_tensors(_leaf, state)
            x = map_tensors(_leaf, layout.piece(given.inputs, t, t + 1))
            y, after = call(given, x, crossing.reset(t, state))
        check_output(y, 1, layout.time)
        check_batch(given, after)
        if is_handed:
            check_attached(given, after)
        steps.append(_Step(*map(floats, (x, state, y, after))))
        if len(steps[-1].after) != len(steps[0].after):
            raise ValueError(
                f"{given.function}: the module's state has {len(steps[0].after)} tensors after "
                f"step 0, and {len(steps[-1].after)} after step {t}; they have to be the same "
                "after each step"
            )
        outputs.append(map_tensors(Tensor.detach, y))
        state = map_tensors(Tensor.detach, after)
    return steps, outputs, state


def _detached(v: Tensor) -> Tensor:
    return v.clone() if v.is_inference() else v.detach()


def _leaf(v: Tensor) -> Tensor:
    return _detached(v).requires_grad_(is_float(v))


# ------------------------------------------------------------------------- the state's tensors


def _names(module: Any, state: Any) -> list[str]:
    """Call the tensors by their place in the nest; those of torch.nn's cells as they are called."""
    places = [place for place, leaf in named_leaves(state) if is_float(leaf)]
    cell = unwrapped(getattr(module, "cell", None))
    if isinstance(cell, nn.RNNCellBase) or isinstance(module, nn.RNNBase):
        return ["hidden", "cell"][: len(places)]
    return [place or "state" for place in places]


def _is_layered(s: Tensor, layout: Layout) -> bool:
    """Whether it is [layers, B, H], as in torch.nn."""
    return layout.batch is not None and layout.state_dim == 1 and s.dim() == 3


def _parts(tensors: list[Tensor], layout: Layout) -> list[Tensor]:
    parts: list[Tensor] = []
    for s in tensors:
        parts += s.unbind(0) if _is_layered(s, layout) else [s]
    return parts


def _named_parts(names: list[str], state: Any, layout: Layout) -> list[tuple[int, str]]:
    return [
        (layer, name)
        for name, s in zip(names, floats(state), strict=True)
        for layer in range(len(s) if _is_layered(s, layout) else 1)
    ]


# ------------------------------------------------------------------------------ the way back


@dataclass
class _Walk:
    """The gradients of all losses that are on their way back, and what was found of them."""

    pairs: Pairs
    layout: Layout
    budget: int
    d_y: list[Tensor]
    """∂L_t/∂y_t of all steps, of each of the outputs' tensors."""
    attributed: bool
    norms: list[Float[Tensor, "batch losses time"]] = field(default_factory=list)
    attribution: Float[Tensor, "batch losses time"] | None = None
    running: list[int] = field(default_factory=list)
    """The numbers of the losses on their way, the latest first."""
    given: list[Tensor] = field(default_factory=list)
    """∂L/∂(state after the step), of each of its tensors, [running, ...]."""

    def back(self, s: int, step: _Step) -> None:
        """Go back through step s: note what enters the step after, and hand on."""
        times, lags = self.pairs.times, self.pairs.lags
        kept = [k for k, n in enumerate(self.running) if times[n] - s < lags]
        self.running = [self.running[k] for k in kept]
        self.given = [g[kept] for g in self.given]
        if self.running:
            self._note_norms(s)
        asked = [v for v in (*step.before, *step.x) if v.requires_grad]
        found = self._through(step, asked) if self.running else []
        if s in times:
            own = self._of_loss(s, step, asked)
            found = [torch.cat(pair) for pair in zip(found, own, strict=True)] if found else own
            self.running.append(times.index(s))
        if not found:
            return
        self.given = found[: len(step.before)]
        if self.attribution is not None:
            self._note_attribution(s, step, found[len(step.before) :])

    def _through(self, step: _Step, asked: list[Tensor]) -> list[Tensor]:
        """The step's vector-Jacobian products of all gradients on their way, in pieces."""
        used = [(y, g) for y, g in zip(step.after, self.given, strict=True) if y.requires_grad]
        n = len(self.running)
        if not used or not asked:
            return [v.new_zeros(n, *v.shape) for v in asked]
        bytes_of_one = 8 * sum(v.numel() * v.element_size() for v in (*step.after, *asked))
        size = max(1, self.budget // max(1, bytes_of_one))
        pieces = []
        for first in range(0, n, size):
            piece = [g[first : first + size] for _, g in used]
            pieces.append(_products([y for y, _ in used], asked, piece))
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def _of_loss(self, s: int, step: _Step, asked: list[Tensor]) -> list[Tensor]:
        """What the loss of step s hands down to the state before it and its inputs, [1, ...]."""
        time = self.layout.time
        own = [(y, d.narrow(time, s, 1)) for y, d in zip(step.y, self.d_y, strict=True)]
        used = [(y, d.to(y)) for y, d in own if y.requires_grad]
        if not used or not asked:
            return [v.new_zeros(1, *v.shape) for v in asked]
        found = torch.autograd.grad(
            [y for y, _ in used], asked, [d for _, d in used], allow_unused=True
        )
        return [
            (torch.zeros_like(v) if g is None else g).unsqueeze(0)
            for g, v in zip(found, asked, strict=True)
        ]

    def _note_norms(self, s: int) -> None:
        dim, n, place = self.layout.state_dim, 0, self.running
        for g in self.given:
            layered = _is_layered(g[0], self.layout)
            for part in g.unbind(1) if layered else [g]:
                rows = by_sequence(self.layout, part, 0 if layered else dim)
                self.norms[n][:, place, s] = _real(rows).double().norm(dim=2).t()
                n += 1

    def _note_attribution(self, s: int, step: _Step, found: list[Tensor]) -> None:
        total: Any = 0
        dim = 1 - self.layout.time
        for x, g in zip(step.x, found, strict=True):
            g, x = by_sequence(self.layout, g, dim), by_sequence(self.layout, x.detach()[None], dim)
            flows = _real(g).double() * _real(x)
            total = total + flows.sum(2).t()
        assert self.attribution is not None
        self.attribution[:, self.running, s] = total


def by_sequence(layout: Layout, g: Tensor, dim: int) -> Tensor:
    """Lay out [n, ...] as [n, B, rest], the batch being dimension ``dim`` of what n counts."""
    if layout.batch is None:
        return g.reshape(len(g), 1, -1)
    return g.movedim(1 + dim, 1).flatten(2) if g.dim() > 2 else g.unsqueeze(2)


def _real(v: Tensor) -> Tensor:
    """Lay out complex numbers as their two parts."""
    return torch.view_as_real(v.resolve_conj()).flatten(2) if v.is_complex() else v


def _products(outputs: list[Tensor], inputs: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    """Vector-Jacobian products of many vectors: batched, or one by one where that is not known."""
    found = batched_vjp(outputs, inputs, given)
    if found is None:
        each = [
            torch.autograd.grad(
                outputs, inputs, one, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for one in zip(*given, strict=True)
        ]
        return [torch.stack(column) for column in zip(*each, strict=True)]
    n = len(given[0])
    return [
        v.new_zeros(n, *v.shape) if g is None else g for g, v in zip(found, inputs, strict=True)
    ]
