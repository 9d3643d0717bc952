"""Through one step of one layer, with many losses at once: the native kernel, and its twin.

What a step does to ∂L/∂(state after it) is linear, and the same for all the losses of a sequence,
so where they are many it is worth making its matrix, with the products of all gates summed: [2H, H]
for an LSTM in place of [4H, H], [H, H] for a GRU in place of [3H, H]. Its rows stand for what the
cell's equations give: the tensors of the state, h last.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bptt._src.engines import flow_step, native
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import FlowCall
from bptt._src.flow.derivatives import Locals, Terms
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
    """‖∂L/∂h‖, and ‖∂L/∂c‖ or whatever else there is, of the state before the step."""
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
        given: ∂L/∂h, and ∂L/∂c or whatever else there is, [S, N, ...], as the step after hands them
            down.
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
        call = FlowCall(layer.cell, x, layer.w)
        self.is_native = engine_for(call, recorded=False) is native
        # Places that are used again at each step: fresh ones are slow.
        given, found = _shape_of_matrix(layer, of_inputs, projected is not None)
        if self.is_native:
            self.matrices = None
            self.of_state = [local.of_state.get(place) for place in flow_step.OF_STATE]
            self.of_hidden = flow_step.Terms.of(local.of_hidden.places)
            self.of_input = flow_step.Terms.of(local.of_input.places)
            width = layer.w.ih.shape[1] if of_inputs else 0
            self.products = x.new_empty(sequences * losses * width)
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
        w, local, of_state = self.layer.w, self.local, self.of_state
        shape = (sequences, number, w.ih.shape[1] if self.of_inputs else 0)
        d_x = self.products[: math.prod(shape)].view(shape)
        flow_step.back(
            flow_step.Step(
                local.of_hidden.values[rows],
                local.of_input.values[rows],
                None if 1 not in local.of_results else local.of_results[1][rows],
                tuple([None if d is None else d[rows] for d in of_state]),
                w.hh,
                w.ih if self.of_inputs else None,
                None if self.projected is None else self.projected[rows],
                d_m,
            ),
            self.of_hidden,
            self.of_input,
            resets,
            self.given,
            losses,
            found.norms,
            d_x if self.of_inputs else None,
            found.attribution,
        )
        return d_x

    def _twin(
        self, rows: slice, losses: slice, resets: Resets, found: Places, d_m: Tensor | None
    ) -> Tensor:
        given, P = [g[:, losses] for g in self.given], self.layer.w.hh.shape[1]
        first = given[0] if d_m is None else d_m
        for n, d in self.local.of_results.items():
            given[n].addcmul_(first, d[rows].unsqueeze(1))
        of_results = first if len(given) == 1 else torch.cat([*given[1:], first], 2)
        assert self.matrices is not None
        self._make_matrices(rows, self.matrices)
        shape = *of_results.shape[:2], self.matrices.shape[2]
        product = self.products[: math.prod(shape)].view(shape)
        torch.bmm(of_results, self.matrices, out=product)
        self._pass_by(given, [*of_results.chunk(len(given), 2)], rows, d_m is None)
        given[0].add_(product[:, :, :P])
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

    def _pass_by(
        self, given: list[Tensor], of_results: list[Tensor], rows: slice, is_whole: bool
    ) -> None:
        """What goes from the state to that before it by no weight: Σ over the results of d ⊙ ∂.

        Args:
            given: the gradients of the state's tensors; become those of the state before.
            of_results: the gradients of the results, that of h last.
            rows: of the layer, those of the step.
            is_whole: whether h is what the equations give, without a projection.
        """
        of_state = self.local.of_state
        for n, g in enumerate(given):  # what is already in its place comes first
            if (n, n) in of_state and (n > 0 or is_whole):
                g.mul_(of_state[n, n][rows].unsqueeze(1))
                others = {n} ^ {*range(len(given))}
            else:
                g.zero_()
                others = {*range(len(given))}
            for i in sorted(others):
                if (i, n) in of_state:
                    g.addcmul_(of_results[i - 1], of_state[i, n][rows].unsqueeze(1))

    def _make_matrices(self, rows: slice, into: Float[Tensor, "rows given found"]) -> None:
        """Make the matrices of some rows: Σ over the blocks of diag(local derivative) W."""
        w, cell = self.layer.w, self.layer.cell
        P, H = w.hh.shape[1], cell.hidden(w)
        of_h, of_x = into[:, :, :P], into[:, :, P:]
        self._add_terms(self.local.of_hidden, rows, of_h, w.hh.unflatten(0, (cell.gates_h, H)))
        if self.of_inputs:
            self._add_terms(self.local.of_input, rows, of_x, w.ih.unflatten(0, (cell.gates_x, H)))
        elif self.projected is not None:
            each = self.projected[rows].transpose(0, 1).unsqueeze(3)
            self._add_terms(self.local.of_input, rows, of_x, each)

    def _add_terms(self, terms: Terms, rows: slice, into: Tensor, blocks: Tensor) -> None:
        H, begun = blocks.shape[-2], set()
        parts = into.split(H, 1) if H else ()
        for part, (i, n) in zip(terms.values[rows].unbind(1), terms.places, strict=True):
            add = _add if i in begun else _put
            add(parts[i - 1], part.unsqueeze(2), blocks[n])
            begun.add(i)
        for i in range(len(parts)):
            if i not in begun:
                parts[i - 1].zero_()


def _put(to: Tensor, a: Tensor, b: Tensor) -> None:
    torch.mul(a, b, out=to)


def _add(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.addcmul_(a, b)


def _shape_of_matrix(layer: Layer, of_inputs: bool, attributed: bool) -> tuple[int, int]:
    """From the gradients of what the equations give to ∂L/∂h_{t-1} and what else is wanted."""
    H = layer.cell.hidden(layer.w)
    more = layer.w.ih.shape[1] if of_inputs else int(attributed)
    return layer.cell.states * H, layer.w.hh.shape[1] + more


def bytes_of_sequence(layer: Layer, losses: int, of_inputs: bool, attributed: bool) -> int:
    """How much room a :class:`Through` takes for each of its sequences."""
    given, found = _shape_of_matrix(layer, of_inputs, attributed)
    return (losses * (2 * given + found) + given * found) * layer.x.element_size()
