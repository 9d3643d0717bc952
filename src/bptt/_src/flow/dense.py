"""All pairs of many losses: one matrix for each step of each sequence.

A step takes the gradients of all the losses after it to the state before it
(:mod:`flow.step_matrix`). In a stack the layers of a step follow one another, so no gradients are
kept but those of the states.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import torch
from torch import Tensor

from bptt._src.flow.derivatives import Locals, local_derivatives
from bptt._src.flow.network import Layer, Network
from bptt._src.flow.pairs import Pairs, by_step
from bptt._src.flow.step_matrix import Places, Through, bytes_of_sequence


class Dense:
    """A network whose losses are followed step by step, all of them at once.

    Args:
        network: after its arguments were checked.
        pairs: which to follow.
        budget: bytes that the matrices and gradients may take; as many sequences as fit into it
            are looked at together.
        attributed: whether to find the inputs' attribution.
    """

    def __init__(self, network: Network, pairs: Pairs, budget: int, attributed: bool) -> None:
        self.network, self.pairs, self.budget = network, pairs, budget
        self.locals: list[Locals] = []
        self.projected: Tensor | None = None
        self.attribution = pairs.empty(network.x.device) if attributed else None

        def forward(layer: Layer) -> Tensor:
            layer.norms = [pairs.empty(layer.x.device) for _ in layer.initial]
            x, masks = layer.cell.inputs_and_masks(layer.x, layer.w)
            of_x, is_bottom = x @ layer.w.ih.t(), not self.locals
            of = (layer, of_x, masks, network.steps, network.resets)
            self.locals.append(local_derivatives(*of, attributed or not is_bottom))
            if attributed and is_bottom:
                self.projected = of_x.unflatten(1, (layer.cell.gates_x, -1))
            return self.locals[-1].y

        self.y = network.forward(forward)

    def follow(self, d_y: Tensor) -> None:
        """Follow the losses whose gradient with respect to the outputs is d_y, [N, P]."""
        batch, losses = self.pairs.batch, len(self.pairs.times)
        each = sum(
            bytes_of_sequence(layer, losses, n > 0, self.attribution is not None)
            for n, layer in enumerate(self.network.layers)
        )
        size = max(1, self.budget // max(1, each))
        for first in range(0, batch, size):
            some = _Some(self, slice(first, min(first + size, batch)), d_y)
            for s in reversed(range(self.pairs.steps)):
                some.back(s)
        self._note_beginnings(d_y)

    def _note_beginnings(self, d_y: Tensor) -> None:
        """Note what enters by the outputs; no loss is of the cell state itself."""
        times = [*self.pairs.times]
        rows = d_y.unflatten(0, (self.pairs.steps, -1))[times]
        norms = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float64)
        by_step(self.network.layers[-1].norms[0])[times, :, range(len(times))] = norms


class _Some:
    """Some sequences, and the gradients of their losses on the way back."""

    def __init__(self, of: Dense, batch: slice, d_y: Tensor) -> None:
        self.of, self.batch, self.d_y = of, batch, d_y
        sequences, losses = batch.stop - batch.start, len(of.pairs.times)
        self.spare = d_y.new_empty(sequences, losses, dtype=torch.float64)
        self.layers = [
            Through(layer, local, n > 0, None if n else of.projected, sequences, losses)
            for n, (layer, local) in enumerate(zip(of.network.layers, of.locals, strict=True))
        ]

    def back(self, s: int) -> None:
        """Go back through step s, from the top layer to the inputs."""
        times, B = self.of.pairs.times, self.of.pairs.batch
        low, high = bisect_left(times, s), bisect_right(times, s + self.of.pairs.lags - 1)
        if low >= high:
            return
        losses, rows = slice(low, high), slice(s * B + self.batch.start, s * B + self.batch.stop)
        begins, top = times[low] == s, len(self.layers) - 1
        resets = None if self.of.network.resets is None else self.of.network.resets[rows]
        more = self.d_y[rows].unsqueeze(1) if begins else None
        for n in reversed(range(top + 1)):
            through = self.layers[n]
            if more is not None:
                through.given[0][:, low : low + more.shape[1]] += more
            if begins and n < top:
                through.layer.norms[0][self.batch, low, s] = torch.linalg.vector_norm(
                    through.given[0][:, low], dim=1, dtype=torch.float64
                )
            more = through.back(rows, losses, resets, self._places(n, losses, s))
            if n and (mask := self.of.network.layers[n - 1].mask) is not None:
                more = more * mask[rows].unsqueeze(1)

    def _places(self, n: int, losses: slice, s: int) -> Places:
        """Where to put what layer n finds at step s: norms belong to the state before it."""
        norms = [
            by_step(values)[s - 1, self.batch, losses] if s else self.spare[:, losses]
            for values in self.layers[n].layer.norms
        ]
        attribution = self.of.attribution if n == 0 else None
        if attribution is None:
            return Places(norms, None)
        return Places(norms, by_step(attribution)[s, self.batch, losses])
