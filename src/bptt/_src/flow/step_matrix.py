"""Through one step of one layer, with many losses at once: the native kernel, and its twin.

What a step does to ∂L/∂(state after it) is linear, and the same for all the losses of a sequence,
so where they are many it is worth making its matrix, with the products of all gates summed: [2H, H]
for an LSTM in place of [4H, H], [H, H] for a GRU in place of [3H, H].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bptt._src.engines import backend, flow_step
from bptt._src.flow.derivatives import Locals
from bptt._src.flow.network import Layer


def least_norm(dtype: torch.dtype) -> float:
    """Below which a gradient ends: its numbers, or their squares in float64, have few digits.

    float16 has so few numbers below one that none is left out.
    """
    return 0.0 if dtype is torch.float16 else max(100 * torch.finfo(dtype).tiny, 1e-150)


Resets = Bool[Tensor, "rows 1"] | None


class Places(NamedTuple):
    """Where what a step finds is put: of the losses on their way, [S, losses] float64."""

    norms: list[Float[Tensor, "sequences losses"]]
    """‖∂L/∂h‖ and for the LSTM ‖∂L/∂c‖ of the state before the step."""
    attribution: Float[Tensor, "sequences losses"] | None
    """⟨∂L/∂x_t, x_t⟩."""


class Through:
    """The steps of a layer, and the gradients of some sequences' losses on their way back.

    Args:
        layer: the layer, as it ran.
        local: the derivatives of its steps.
        of_inputs: whether ∂L/∂x_t is wanted, for the layer below.
        projected: W_ih x_t, [rows, G, H], where ⟨∂L/∂x_t, x_t⟩ is wanted instead, or None.
        sequences: how many sequences, S.
        losses: how many losses of each, N.

    Attributes:
        given: ∂L/∂h and for the LSTM ∂L/∂c, [S, N, ...], as the step after hands them down.
    """

    def __init__(
        self,
        layer: Layer,
        local: Locals,
        of_inputs: bool,
        projected: Tensor | None,
        sequences: int,
        losses: int,
    ) -> None:
        self.layer, self.local, self.of_inputs = layer, local, of_inputs
        self.projected = projected
        x = layer.x
        self.given = [x.new_zeros(sequences, losses, s.shape[1]) for s in layer.initial]
        self.is_native = backend.runs_native() and flow_step.serves(x, layer.w)
        # Places that are used again at each step: fresh ones are slow.
        given, found = _shape_of_matrix(layer, of_inputs, projected is not None)
        if self.is_native:
            self.matrices = None
            self.products = x.new_empty(sequences * losses * x.shape[1] if of_inputs else 0)
        else:
            self.matrices = x.new_empty(sequences, given, found)
            self.products = x.new_empty(sequences * losses * found)

    def back(self, rows: slice, losses: slice, resets: Resets, found: Places) -> Tensor:
        """Take the gradients through a step, in place, and find the norms of what comes out.

        Where all that comes out for a loss is about to be nothing, it becomes zero: numbers that
        are next to the smallest that there are have few digits and are slow, as are their squares.

        Args:
            rows: of the layer, those of the step: one for each of the S sequences.
            losses: which are on their way.
            resets: where the state is set to zero before the rows' step, or None.
            found: is filled with the norms, and with the attribution if there is a place for it.

        Returns:
            ∂L/∂x_t, [S, losses, I], if it is wanted; in a place that the next step uses again.
        """
        d_m = None
        if self.layer.w.hr is not None:
            d_m = self.given[0][:, losses] @ self.layer.w.hr
        if self.is_native:
            return self._native(rows, losses, resets, found, d_m)
        return self._twin(rows, losses, resets, found, d_m)

    def _native(
        self, rows: slice, losses: slice, resets: Resets, found: Places, d_m: Tensor | None
    ) -> Tensor:
        sequences, number = len(self.given[0]), losses.stop - losses.start
        w, local, inputs = self.layer.w, self.local, self.layer.x.shape[1]
        shape = (sequences, number, inputs if self.of_inputs else 0)
        d_x = self.products[: math.prod(shape)].view(shape)
        flow_step.back(
            flow_step.Step(
                local.of_hidden[rows],
                local.of_input[rows],
                None if local.through is None else local.through[rows],
                None if local.kept is None else local.kept[rows],
                w.hh,
                w.ih if self.of_inputs else None,
                None if self.projected is None else self.projected[rows],
                resets,
            ),
            [g[:, losses] for g in self.given],
            d_m,
            found.norms,
            d_x if self.of_inputs else None,
            found.attribution,
        )
        return d_x

    def _twin(
        self, rows: slice, losses: slice, resets: Resets, found: Places, d_m: Tensor | None
    ) -> Tensor:
        given, local, P = [g[:, losses] for g in self.given], self.local, self.layer.w.hh.shape[1]
        d_h = d = given[0]
        if local.through is not None:
            d_m = d_h if d_m is None else d_m
            given[1].addcmul_(d_m, local.through[rows].unsqueeze(1))
            d = torch.cat([given[1], d_m], 2)
        assert self.matrices is not None
        self._make_matrices(rows, self.matrices)
        shape = *d.shape[:2], self.matrices.shape[2]
        product = self.products[: math.prod(shape)].view(shape)
        torch.bmm(d, self.matrices, out=product)
        handed_down = product[:, :, :P]
        if local.kept is None:
            d_h.copy_(handed_down)
        elif local.through is None:
            d_h.mul_(local.kept[rows].unsqueeze(1)).add_(handed_down)
        else:
            d_h.copy_(handed_down)
            given[1].mul_(local.kept[rows].unsqueeze(1))
        if resets is not None:
            for g in given:
                g.masked_fill_(resets.unsqueeze(1), 0)
        if found.attribution is not None:
            found.attribution.copy_(product[:, :, P])
        least = least_norm(given[0].dtype)
        for norms, g in zip(found.norms, given, strict=True):
            norms.copy_(torch.linalg.vector_norm(g, dim=2, dtype=torch.float64))
        nothing = torch.stack(found.norms).amax(0) < least
        if bool(nothing.any()):
            for g in given:
                g.masked_fill_(nothing.unsqueeze(2), 0)
        return product[:, :, P:]

    def _make_matrices(self, rows: slice, into: Float[Tensor, "rows given found"]) -> None:
        """Make the matrices of some rows: Σ over the gates of diag(local derivative) W."""
        w, states = self.layer.w, self.layer.cell.states
        P, H = w.hh.shape[1], w.hh.shape[0] // self.layer.cell.gates_h
        of_hidden, of_input = self.local.of_hidden[rows], self.local.of_input[rows]
        for g in range(self.layer.cell.gates_h):
            block = g // 3 if states == 2 else 0  # of m for the LSTM's o
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


def _shape_of_matrix(layer: Layer, of_inputs: bool, attributed: bool) -> tuple[int, int]:
    """From ∂L/∂h, or ∂L/∂c and ∂L/∂m, to ∂L/∂h_{t-1} and what else is wanted."""
    H = layer.w.hh.shape[0] // layer.cell.gates_h
    more = layer.x.shape[1] if of_inputs else int(attributed)
    return layer.cell.states * H, layer.w.hh.shape[1] + more


def bytes_of_sequence(layer: Layer, losses: int, of_inputs: bool, attributed: bool) -> int:
    """How much room a :class:`Through` takes for each of its sequences."""
    given, found = _shape_of_matrix(layer, of_inputs, attributed)
    return (losses * (2 * given + found) + given * found) * layer.x.element_size()
