"""What a step does to a gradient, apart from the products with its weights.

A cell's equations are elementwise, so all its local derivatives are diagonal, and autograd finds
those of many steps at once.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn.functional import linear

from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call
from bptt._src.flow.network import Layer
from bptt._src.steps import Boundary, Steps
from bptt.cells import State
from bptt.cells.recursion import Localised, Place

NUMBERS = 2**15
"""So many numbers of each tensor are differentiated at a time, about: they stay in the cache."""


class Terms(NamedTuple):
    """Local derivatives with respect to the blocks of W_ih x or of W_hh h; none that is zero."""

    values: Inexact[Tensor, "rows terms hidden"]
    places: tuple[Place, ...]
    """The result and the block of each. Those of a result lie side by side, those of h last."""


class Locals(NamedTuple):
    """The local derivatives of all steps of a layer.

    The equations give h, or what is projected to it, and the other tensors of the state. Where h
    is computed from one of those, as an LSTM's from c, what it passes on to it is in ``of_results``
    and nowhere else: the gradient of c gets it first, and the gates before c need no term of h.
    """

    y: Inexact[Tensor, "rows output"]
    """h_t, [N, P]."""
    of_input: Terms
    """∂/∂(W_ih x_t)."""
    of_hidden: Terms
    """∂/∂(W_hh h_{t-1})."""
    of_results: dict[int, Tensor]
    """∂h/∂(another result), [N, H], by its number."""
    of_state: dict[Place, Tensor]
    """∂(result)/∂(tensor of the state before), [N, H], by the numbers of both."""


def local_derivatives(
    layer: Layer,
    of_x: Tensor,
    masks: Tensor | None,
    steps: Steps,
    resets: Tensor | None,
    of_inputs: bool,
) -> Locals:
    """Run a layer, and find the local derivatives of its steps.

    Args:
        layer: the layer.
        of_x: W_ih x_t, [N, X·H].
        masks: those of zoneout beside x_t, [N, masks·H], or None.
        steps: which rows belong to which step.
        resets: where the state is set to zero before the row's step, [N, 1].
        of_inputs: whether the derivatives with respect to W_ih x_t are wanted.
    """
    cell, w = layer.cell, layer.w
    after, before, values, ran = _run(layer, steps, resets)
    y = after[0]
    if cell.phi is not None and cell.phi.derivative is not None and w.hr is None:
        # From h itself: a kink is on the side on which the run had it.
        terms = Terms(cell.phi.derivative(y).unsqueeze(1), ((0, 0),))
        return Locals(y, terms, terms, {}, {})
    H, N, a = cell.hidden(w), len(y), cell.gates_x + cell.masks
    b = a + cell.gates_h
    if values is not None:
        by_hand = cast(Localised, cell.by_hand)
        of_results, of_each = by_hand.local_derivatives(values, tuple(before), after)
        return _laid_out(y, of_results, of_each, (a, b))
    units = () if w.units is None else w.units.detach().unbind(0)
    found: Locals | None = None
    for first in range(0, N, size := max(1, NUMBERS // H)):
        rows = slice(first, min(first + size, N))
        if ran is not None:
            x, h = (block[rows] for block in ran)
        else:
            x = of_x[rows] if w.b_ih is None else of_x[rows] + w.b_ih
            x = x if masks is None else torch.cat([x, masks[rows]], 1)
            h = linear(before[0][rows], w.hh, w.b_hh)
        with torch.enable_grad():
            blocks = *x.detach().chunk(a, 1), *(h.detach().chunk(b - a, 1) if b > a else ())
            given = [t.requires_grad_() for t in (*blocks, *(s[rows] for s in before))]
            results = cell.equations(tuple(given[:a]), tuple(given[a:b]), tuple(given[b:]), units)
            of_results, of_each = _differentiate(results, given, 0 if of_inputs else a)
        if found is None:
            found = _room(y, H, [*of_results], [*of_each], (a, b))
        for n, d in of_results.items():
            found.of_results[n][rows] = d
        for (i, n), d in of_each.items():
            if n >= b:
                found.of_state[i, n - b][rows] = d
        for terms, offset in ((found.of_input, 0), (found.of_hidden, a)):
            for r, (i, n) in enumerate(terms.places):
                terms.values[rows, r] = of_each[i, n + offset]
    assert found is not None
    return found


def _run(
    layer: Layer, steps: Steps, resets: Tensor | None
) -> tuple[State, list[Tensor], tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """Run a layer.

    Returns:
        The state after each row's step, that from which it starts, what the cell's recursion by
        hand keeps, and the gates before their nonlinearities, [N, G·H], of x and of h; the last
        two where the engine knows those of the run.
    """
    cell, w, several = layer.cell, layer.w, layer.cell.states > 1
    call = Call(cell, layer.x, layer.initial, w, steps, Boundary(None, resets))
    engine = engine_for(call, recorded=False)
    reads = hasattr(cell.by_hand, "local_derivatives")
    y, _, kept = engine.forward(call, keep=several or reads)
    after = (y, *engine.other_states(call, kept)) if several else (y,)
    before = [steps.previous(first, s) for first, s in zip(layer.initial, after, strict=True)]
    if resets is not None:
        before = [s.masked_fill_(resets, 0) for s in before]
    values = engine.values(call, kept) if reads else None
    return after, before, values, None if values else engine.blocks(call, before[0], kept)


def _laid_out(
    y: Tensor, of_results: dict[int, Tensor], of_each: dict[Place, Tensor], ends: tuple[int, int]
) -> Locals:
    """Lay out derivatives of all rows, of the blocks of x, of h, and the state."""
    a, b = ends
    of_x, of_h = ([p for p in of_each if i <= p[1] < j] for i, j in ((0, a), (a, b)))
    input = Terms(torch.stack([of_each[p] for p in of_x], 1), tuple(of_x))
    hidden = Terms(input.values, tuple((i, n - a) for i, n in of_h))
    if any(of_each[p] is not of_each[q] for p, q in zip(of_x, of_h, strict=True)):
        hidden = hidden._replace(values=torch.stack([of_each[p] for p in of_h], 1))
    of_state = {(i, n - b): d.contiguous() for (i, n), d in of_each.items() if n >= b}
    return Locals(y, input, hidden, of_results, of_state)


def _room(
    y: Tensor, hidden: int, of_results: list[int], of_each: list[Place], ends: tuple[int, int]
) -> Locals:
    """Make room for the derivatives that there are, of the blocks of x, of h, and the state."""
    (a, b), N = ends, len(y)
    of_x = tuple(place for place in of_each if place[1] < a)
    of_h = tuple((i, n - a) for i, n in of_each if a <= n < b)
    return Locals(
        y,
        Terms(y.new_empty(N, len(of_x), hidden), of_x),
        Terms(y.new_empty(N, len(of_h), hidden), of_h),
        {n: y.new_empty(N, hidden) for n in of_results},
        {(i, n - b): y.new_empty(N, hidden) for i, n in of_each if n >= b},
    )


def _differentiate(
    results: State, given: list[Tensor], first: int
) -> tuple[dict[int, Tensor], dict[Place, Tensor]]:
    """Differentiate the equations, h with the other results held constant.

    Args:
        results: what the equations give.
        given: and what they were given.
        first: of that, the first with respect to which derivatives are wanted.

    Returns:
        Those of h with respect to the other results, and all with respect to what was given; only
        those that may differ from zero, h last.
    """
    h, *others = (r.view_as(r) if r.is_leaf and r.requires_grad else r for r in results)
    of_each: dict[Place, Tensor] = {}
    wanted = range(first, len(given))
    for i, result in enumerate(others, 1):
        if result.requires_grad:
            found = _gradients(result, [given[n] for n in wanted])
            of_each |= {(i, n): d for n, d in zip(wanted, found, strict=True) if d is not None}
    if not h.requires_grad:
        return {}, of_each
    through, direct = _reached(h, others, given)
    of_results: dict[int, Tensor] = {}

    def stop(i: int, d: Tensor) -> Tensor:
        of_results[i] = d
        return torch.zeros_like(d)

    hooks = [others[i - 1].register_hook(lambda d, i=i: stop(i, d)) for i in through]
    direct = [n for n in direct if n >= first]
    found = _gradients(h, [*(given[n] for n in direct), *(others[i - 1] for i in through)])
    for hook in hooks:
        hook.remove()
    of_each |= {(0, n): d for n, d in zip(direct, found, strict=False) if d is not None}
    return of_results, of_each


def _gradients(result: Tensor, given: list[Tensor]) -> list[Tensor | None]:
    if not given:
        return []
    total = result.sum()  # a gradient of ones, for which torch does not load what checks shapes
    return [*torch.autograd.grad(total, given, retain_graph=True, allow_unused=True)]


def _reached(h: Tensor, others: list[Tensor], given: list[Tensor]) -> tuple[list[int], list[int]]:
    """Walk through h's graph; return which other results it comes from, and what else, directly."""
    stops = {(r.grad_fn, r.output_nr): i for i, r in enumerate(others, 1) if r.requires_grad}
    number = {id(t): n for n, t in enumerate(given)}
    results, direct, seen = set(), set(), set()
    ahead = [(h.grad_fn, h.output_nr)]
    while ahead:
        at = ahead.pop()
        node = at[0]
        if at in stops:
            results.add(stops[at])
        elif node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                direct.add(number.get(id(node.variable)))
            ahead += node.next_functions
    return sorted(results), sorted(n for n in direct if n is not None)
