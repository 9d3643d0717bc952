"""What the fast paths are checked against, written for clarity and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import Cell, State, Weights


class Terms(NamedTuple):
    """What flows from the loss at t to each use of what it depends on; zeros where nothing does."""

    steps: dict[tuple[int, int], list[Tensor]]
    """C[t, s] for s ≤ t: of the weights of all layers, of x_s last."""
    initial: list[list[Tensor]]
    """For each t, of the initial states of all layers."""


def terms_of(
    cell: Cell,
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    loss: Callable[[list[State], int], Tensor],
    resets: Tensor | None = None,
    masks: Sequence[Tensor] = (),
) -> Terms:
    """Compute C[t, s] by its definition: what flows from the loss at t to the use of θ at s.

    Every step uses copies of the weights of its own, so ∂L_t/∂(copy s) is what flows from L_t
    to step s, over all the steps in between, and nothing else. In a stack of layers too: however
    a path climbs, it goes back over each boundary between two steps once, in one of the layers.

    Args:
        cell: whose equations.
        x: the inputs, [T, B, I].
        states: the initial state of each layer.
        weights: of each layer.
        loss: ``(the states of all layers after step t, t) -> scalar`` L_t.
        resets: before which steps all states are set to zero, [T] bool.
        masks: what the outputs of each layer but the last are multiplied by, [T, B, H].
    """
    xs = [x_t.detach().clone().requires_grad_() for x_t in x]
    first = [tuple(s.detach().clone().requires_grad_() for s in state) for state in states]
    copies = [[_copy(w) for w in weights] for _ in xs]
    used = [[*(p for w in copies[s] for p in w if p is not None), xs[s]] for s in range(len(xs))]
    initial = [s for state in first for s in state]
    running, found = list(first), Terms({}, [])
    for t, h in enumerate(xs):
        for layer, w in enumerate(copies[t]):
            if resets is not None and resets[t]:
                running[layer] = tuple(torch.zeros_like(s) for s in running[layer])
            running[layer] = cell.step(h, running[layer], w)
            h = running[layer][0]
            if layer < len(masks):
                h = h * masks[layer][t]
        asked = [*initial, *(p for s in range(t + 1) for p in used[s])]
        flows = list(
            torch.autograd.grad(
                loss(running, t),
                asked,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        found.initial.append(flows[: len(initial)])
        for s in range(t + 1):
            start = len(initial) + s * len(used[0])
            found.steps[t, s] = flows[start : start + len(used[0])]
    return found


def credited(
    terms: Terms, matrix: Tensor, of_initial_state: Tensor
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Sum W[t, s] · C[t, s] over all s ≤ t.

    Returns:
        The gradients of the weights of all layers, of the inputs [T, B, I], and of the initial
        states of all layers.
    """
    T = len(terms.initial)
    total = weighted(terms.steps, matrix)[:-1]
    inputs = [sum(matrix[t, s] * terms.steps[t, s][-1] for t in range(s, T)) for s in range(T)]
    initial = [
        sum(c * flow for c, flow in zip(of_initial_state, flows, strict=True))
        for flows in zip(*terms.initial, strict=True)
    ]
    return total, torch.stack(inputs), initial


def credit_terms(
    cell: Cell, x: Tensor, state: State, w: Weights, loss: Callable[[Tensor, int], Tensor]
) -> dict[tuple[int, int], list[Tensor]]:
    """:func:`terms_of` one layer's weights, whose loss is ``(output [B, P], t) -> scalar`` L_t.

    Returns:
        C[t, s] as a list of gradients, one for each weight that is there, for s ≤ t.
    """
    terms = terms_of(cell, x, [state], [w], lambda states, t: loss(states[0][0], t))
    return {at: flows[:-1] for at, flows in terms.steps.items()}


def weighted(terms: dict[tuple[int, int], list[Tensor]], matrix: Tensor) -> list[Tensor]:
    """Sum W[t, s] · C[t, s] over all s ≤ t, weight by weight."""
    total = [torch.zeros_like(g) for g in terms[0, 0]]
    for (t, s), term in terms.items():
        total = [a + matrix[t, s] * g for a, g in zip(total, term, strict=True)]
    return total


def _copy(w: Weights) -> Weights:
    return Weights(*(None if p is None else p.detach().clone().requires_grad_() for p in w))
