"""All pairs in the networks of bptt and torch.nn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bptt._src.engines.guard import without_autocast
from bptt._src.flow.cotangents import Cotangents
from bptt._src.flow.dense import Dense
from bptt._src.flow.flow import StateFlow
from bptt._src.flow.given import Given
from bptt._src.flow.network import Network
from bptt._src.flow.pairs import Found, Pairs
from bptt._src.flow.windows import SideBySide

MANY = 8
"""So many losses on their way through a step, on average, are worth a matrix for it."""


def through_layers(
    given: Given,
    begin: Callable[[Tensor], Cotangents],
    pairs: Pairs,
    budget: int,
    attributed: bool,
) -> Found:
    """Follow the losses of a network of bptt or torch.nn.

    Args:
        given: the network and what it is given.
        begin: gives ∂L_t/∂y_t for the outputs, laid out as the module's.
        pairs: which to follow.
        budget: bytes that the gradients on their way may take.
        attributed: whether to find the inputs' attribution.
    """
    assert given.ours is not None
    with torch.no_grad(), without_autocast(given.inputs.device):
        network = Network(given.ours, given.inputs, given.state, given.resets)
        way = Dense if pairs.losses_at_a_step >= MANY else SideBySide
        found = way(network, pairs, budget, attributed)
        start = begin(network.outputs(found.y))
        found.follow(network.of_rows(start.outputs[0]))
    states = [
        StateFlow(n, name, pairs.completed(norms))
        for n, layer in enumerate(network.layers)
        for name, norms in zip(_names(len(layer.norms)), layer.norms, strict=True)
    ]
    attribution = None if found.attribution is None else pairs.completed(found.attribution)
    return Found(start.losses, tuple(states), attribution)


def _names(states: int) -> list[str]:
    """What the tensors of a state are called: h, c, and others by their number."""
    return ["hidden", "cell", *(f"state {n}" for n in range(3, states + 1))][:states]
