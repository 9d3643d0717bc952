"""All pairs of many losses: one matrix for each step of each sequence.

A step takes the gradients of all the losses after it to the state before it. That is linear, and
the same for all of them, so where they are many it is worth making its matrix, with the products of
all gates summed: [2H, H] for an LSTM in place of [4H, H], [H, H] for a GRU in place of [3H, H]. In
a stack the layers of a step follow one another, so no gradients are kept but those of the states.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bptt.flow.derivatives import Locals, local_derivatives
from bptt.flow.network import Layer, Network
from bptt.flow.pairs import Pairs


@dataclass
class _Dense:
    """A layer, and what makes the matrices of its steps."""

    layer: Layer
    local: Locals
    of_inputs: bool
    """Whether the matrices give ∂L/∂x_t, which the layer below wants."""
    projected: Tensor | None
    """The inputs' part of the gates, [N, G, H], where the matrices give their credit instead."""

    @property
    def hidden(self) -> int:
        """H."""
        return self.layer.w.hh.shape[0] // self.layer.cell.gates

    @property
    def outputs(self) -> int:
        """P."""
        return self.layer.w.hh.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of a matrix: from ∂L/∂h, or ∂L/∂c and ∂L/∂m, to ∂L/∂h_{t-1} and what else is wanted."""
        more = self.layer.w.ih.shape[1] if self.of_inputs else int(self.projected is not None)
        return self.layer.cell.states * self.hidden, self.outputs + more

    def make_matrices(self, rows: slice, into: Float[Tensor, "rows given found"]) -> None:
        """Make the matrices of some rows: Σ over the gates of diag(local derivative) W."""
        w, H, P = self.layer.w, self.hidden, self.outputs
        of_hidden, of_input = self.local.of_hidden[rows], self.local.of_input[rows]
        for g in range(self.layer.cell.gates):
            block = g // 3 if self.layer.cell.states == 2 else 0  # of m for the LSTM's o
            add = _put if g == 3 * block else _add
            part, gate = into[:, block * H : (block + 1) * H], slice(g * H, (g + 1) * H)
            add(part[:, :, :P], of_hidden[:, g].unsqueeze(2), w.hh[gate])
            if self.of_inputs:
                add(part[:, :, P:], of_input[:, g].unsqueeze(2), w.ih[gate])
            elif self.projected is not None:
                add(part[:, :, P], of_input[:, g], self.projected[rows, g])


def _put(to: Tensor, a: Tensor, b: Tensor) -> None:
    torch.mul(a, b, out=to)


def _add(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.addcmul_(a, b)


class Dense:
    """A network whose losses are followed step by step, all of them at once.

    Args:
        network: after its arguments were checked.
        pairs: which to follow.
        budget: bytes that the matrices and gradients may take; as many sequences as fit into it
            are looked at together.
        credited: whether to find the inputs' credit.
    """

    def __init__(self, network: Network, pairs: Pairs, budget: int, credited: bool) -> None:
        self.network, self.pairs, self.budget = network, pairs, budget
        self.layers: list[_Dense] = []
        self.credit = pairs.empty(network.x.device) if credited else None

        def forward(layer: Layer) -> Tensor:
            of = (layer.cell, layer.x, layer.initial, layer.w, network.steps, network.resets)
            local, projected = local_derivatives(*of), None
            if credited and not self.layers:
                projected = (layer.x @ layer.w.ih.t()).unflatten(1, (layer.cell.gates, -1))
            self.layers.append(_Dense(layer, local, bool(self.layers), projected))
            return local.y

        self.y = network.forward(forward)

    def follow(self, d_y: Tensor) -> None:
        """Follow the losses whose gradient with respect to the outputs is d_y, [N, P]."""
        batch = self.pairs.batch
        size = max(1, self.budget // max(1, self._bytes_of_sequence()))
        for first in range(0, batch, size):
            some = _Some(self, slice(first, min(first + size, batch)), d_y)
            for s in reversed(range(self.pairs.steps)):
                some.back(s)

    def _bytes_of_sequence(self) -> int:
        N, numbers = len(self.pairs.times), 0
        for dense in self.layers:
            given, found = dense.shape
            numbers += N * (2 * given + found)
        numbers += max(given * found for given, found in (d.shape for d in self.layers))
        return numbers * self.y.element_size()


class _Some:
    """Some sequences, and the gradients of their losses on the way back."""

    def __init__(self, of: Dense, batch: slice, d_y: Tensor) -> None:
        self.of, self.batch, self.d_y = of, batch, d_y
        N, sequences = len(of.pairs.times), batch.stop - batch.start
        self.given = [  # of each layer, of each tensor of its state, [sequences, N, H]
            [s.new_zeros(sequences, N, s.shape[1]) for s in dense.layer.initial]
            for dense in of.layers
        ]
        # Places that are used again at each step: fresh ones are slow.
        self.matrices = [d_y.new_empty(sequences, *dense.shape) for dense in of.layers]
        self.products = [d_y.new_empty(N * sequences * dense.shape[1]) for dense in of.layers]

    def back(self, s: int) -> None:
        """Go back through step s, from the top layer to the inputs."""
        times, B = self.of.pairs.times, self.of.pairs.batch
        low, high = bisect_left(times, s), bisect_right(times, s + self.of.pairs.lags - 1)
        if low >= high:
            return
        losses, rows = slice(low, high), slice(s * B + self.batch.start, s * B + self.batch.stop)
        begins = times[low] == s
        more: Tensor | None = None
        if begins:
            more = self.d_y[rows].unsqueeze(1)
        for n in reversed(range(len(self.of.layers))):
            dense, given = self.of.layers[n], [g[:, losses] for g in self.given[n]]
            self._note(dense.layer, given, losses, s, int(begins))
            if more is not None:
                given[0][:, : more.shape[1]] += more
            if begins:
                self._note_beginning(dense.layer, given[0][:, 0], low, s)
            rest = self._through(n, given, rows)
            if n:
                mask = self.of.layers[n - 1].layer.mask
                more = rest if mask is None else rest * mask[rows].unsqueeze(1)
            elif self.of.credit is not None:
                self.of.credit[self.batch, losses, s] = rest[:, :, 0].double()

    def _note(self, layer: Layer, given: list[Tensor], losses: slice, s: int, begin: int) -> None:
        """Note the norms of what the step after hands down, and end what is about to be nothing.

        Numbers that are next to the smallest that there are have few digits, and are slow. The
        first loss, if it begins here, is nothing yet.
        """
        nothing: Bool[Tensor, "sequences losses"] | None = None
        least = 100 * torch.finfo(given[0].dtype).tiny
        for norms, g in zip(layer.norms, given, strict=True):
            found = torch.linalg.vector_norm(g, dim=2, dtype=torch.float64)
            norms[self.batch, losses, s] = found
            nothing = found < least if nothing is None else nothing & (found < least)
        assert nothing is not None
        if bool(nothing[:, begin:].any()):
            for g in given:
                g.masked_fill_(nothing.unsqueeze(2), 0)

    def _note_beginning(self, layer: Layer, g: Tensor, number: int, s: int) -> None:
        """Note what comes through the output; no loss is of the cell state itself."""
        layer.norms[0][self.batch, number, s] = torch.linalg.vector_norm(
            g, dim=1, dtype=torch.float64
        )
        for norms in layer.norms[1:]:
            norms[self.batch, number, s] = torch.nan

    def _through(self, n: int, given: list[Tensor], rows: slice) -> Tensor:
        """Take the gradients of a layer's state to the step before, in place.

        Returns:
            What the matrices give besides, [sequences, losses, ...].
        """
        dense, matrices = self.of.layers[n], self.matrices[n]
        local, w, P = dense.local, dense.layer.w, dense.outputs
        d_h = d = given[0]
        if local.through is not None:
            d_m = d_h if w.hr is None else d_h @ w.hr
            given[1].addcmul_(d_m, local.through[rows].unsqueeze(1))
            d = torch.cat([given[1], d_m], 2)
        dense.make_matrices(rows, matrices)
        shape = *d.shape[:2], dense.shape[1]
        found = self.products[n][: math.prod(shape)].view(shape)
        torch.bmm(d, matrices, out=found)
        handed_down = found[:, :, :P]
        if local.kept is None:
            d_h.copy_(handed_down)
        elif local.through is None:
            d_h.mul_(local.kept[rows].unsqueeze(1)).add_(handed_down)
        else:
            d_h.copy_(handed_down)
            given[1].mul_(local.kept[rows].unsqueeze(1))
        resets = self.of.network.resets
        if resets is not None:
            for g in given:
                g.masked_fill_(resets[rows].unsqueeze(1), 0)
        return found[:, :, P:]
