"""What the fast paths are checked against, written for clarity and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bptt.cells import Cell, State, Weights


def credit_terms(
    cell: Cell, x: Tensor, state: State, w: Weights, loss: Callable[[Tensor, int], Tensor]
) -> dict[tuple[int, int], list[Tensor]]:
    """Compute C[t, s] by its definition: what flows from the loss at t to the use of θ at s.

    Every step uses copies of the weights of its own, so ∂L_t/∂(copy s) is what flows from L_t
    to step s, over all the steps in between, and nothing else.

    Args:
        x: the inputs, [T, B, I].
        loss: ``(output [B, P], t) -> scalar`` L_t.

    Returns:
        C[t, s] as a list of gradients, one for each weight that is there, for s ≤ t.
    """
    given = [p for p in w if p is not None]
    copies = [[p.detach().clone().requires_grad_() for p in given] for _ in x]
    losses = []
    for t, x_t in enumerate(x):
        own = iter(copies[t])
        state = cell.step(x_t, state, Weights(*(None if p is None else next(own) for p in w)))
        losses.append(loss(state[0], t))
    return {
        (t, s): list(torch.autograd.grad(losses[t], copies[s], retain_graph=True))
        for t in range(len(x))
        for s in range(t + 1)
    }


def weighted(terms: dict[tuple[int, int], list[Tensor]], matrix: Tensor) -> list[Tensor]:
    """Sum W[t, s] · C[t, s] over all s ≤ t, weight by weight."""
    total = [torch.zeros_like(g) for g in terms[0, 0]]
    for (t, s), term in terms.items():
        total = [a + matrix[t, s] * g for a, g in zip(total, term, strict=True)]
    return total
