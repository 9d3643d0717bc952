"""All pairs of few losses: windows that overlap, side by side.

The loss of step t travels back over states that are all there already, independently of those of
other steps. So the losses of a chunk of steps are windows that overlap, ``every=1, reach=lags``
(:mod:`engines.windows`), and one recursion of the deltas goes back through all of them, layer
by layer from the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from bptt._src.engines import twin
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call, Engine, Incoming, Saved
from bptt._src.engines.windows import Windows
from bptt._src.flow.network import Layer, Network
from bptt._src.flow.pairs import Pairs, by_step
from bptt._src.steps import Boundary, Steps

MOST_WINDOWS = 256
"""Side by side: more of them leave the processor's cache."""


@dataclass
class _Run:
    """A layer after its forward pass."""

    layer: Layer
    engine: Engine
    call: Call
    saved: Saved

    def bytes_of_row(self) -> int:
        """What a row of the windows takes: gradients that come and go, norms and indices."""
        x, y = self.layer.x, self.saved.y
        numbers = x.shape[1] + y.shape[1]
        if self.engine is twin:  # and copies of what was kept, and as many local derivatives
            numbers += 3 * self.layer.w.ih.shape[0] + 3 * y.shape[1]
        return numbers * x.element_size() + 64


class SideBySide:
    """A network whose losses are followed side by side.

    Args:
        network: after its arguments were checked.
        pairs: which to follow.
        budget: bytes that the gradients of a chunk of losses may take.
        attributed: whether to find the inputs' attribution.
    """

    def __init__(self, network: Network, pairs: Pairs, budget: int, attributed: bool) -> None:
        self.network, self.pairs, self.budget = network, pairs, budget
        self.runs: list[_Run] = []
        self.attribution = pairs.empty(network.x.device) if attributed else None

        def forward(layer: Layer) -> Tensor:
            layer.norms = [pairs.empty(layer.x.device) for _ in layer.initial]
            boundary = Boundary(None, network.resets)
            call = Call(layer.cell, layer.x, layer.initial, layer.w, network.steps, boundary)
            engine = engine_for(call, recorded=False)
            y, _, kept = engine.forward(call, keep=True)
            self.runs.append(_Run(layer, engine, call, Saved(y, kept)))
            return y

        self.y = network.forward(forward)

    def follow(self, d_y: Tensor) -> None:
        """Follow the losses whose gradient with respect to the outputs is d_y, [N, P]."""
        for chunk in self._chunks():
            self._follow_some(d_y, _Chunk.of(chunk, self.pairs, d_y.device))

    def _chunks(self) -> Iterator[list[int]]:
        """Split the losses, by number, the last step first, into those followed together."""
        pairs, of_row = self.pairs, max(run.bytes_of_row() for run in self.runs)
        chunk: list[int] = []
        taken = 0
        for n in reversed(range(len(pairs.times))):
            more = min(pairs.times[n] + 1, pairs.lags) * pairs.batch * of_row
            windows = (len(chunk) + 1) * pairs.batch
            if chunk and (taken + more > self.budget or windows > MOST_WINDOWS):
                yield chunk
                chunk, taken = [], 0
            chunk.append(n)
            taken += more
        yield chunk

    def _follow_some(self, d_y: Tensor, chunk: _Chunk) -> None:
        """Follow a chunk from the top layer to the inputs; where a window begins, the gradient of
        its loss is that of a final state.
        """
        windows, W = chunk.windows, chunk.many
        first = d_y.index_select(0, chunk.of_loss)
        more: Tensor | None = None
        for n in reversed(range(len(self.runs))):
            run, layer = self.runs[n], self.runs[n].layer
            d_state = (first, *(first.new_zeros(W, s.shape[1]) for s in layer.initial[1:]))
            norms = first.new_empty(len(windows.rows), len(layer.norms), dtype=torch.float64)
            call = run.call._replace(windows=windows, by_windows=True)
            wanted = (
                bool(n) or self.attribution is not None,
                *(False,) * (len(call.tensors()) - 1),
            )
            incoming = Incoming(more, d_state, wanted, norms)
            more = run.engine.backward(call, run.saved, incoming).x
            if more is not None:
                more, _ = layer.cell.inputs_and_masks(more, layer.w)
            norms[:W, 1:] = torch.nan  # no loss is of the cell state itself
            for place, values in zip(layer.norms, norms.unbind(1), strict=True):
                by_step(place).view(-1)[chunk.place] = values
            if n:
                assert more is not None
                mask = self.runs[n - 1].layer.mask
                if mask is not None:
                    more = more.mul_(mask.index_select(0, windows.rows))
                first = more[:W].clone()
                more[:W] = 0
        if self.attribution is not None and more is not None:
            flows = more.mul_(self.network.x.index_select(0, windows.rows)).sum(1)
            by_step(self.attribution).view(-1)[chunk.place] = flows.double()


class _Chunk(NamedTuple):
    """The windows of a chunk of losses, and where each of their rows belongs."""

    windows: Windows
    many: int
    """How many windows there are."""
    of_loss: Int64[Tensor, " windows"]
    """The row of the sequence in which each window's loss is."""
    place: Int64[Tensor, " rows"]
    """Where each row's norm goes in [T, B, N], flattened."""

    @classmethod
    def of(cls, chunk: list[int], pairs: Pairs, device: torch.device) -> _Chunk:
        number = torch.tensor(chunk, device=device)
        t = torch.tensor([pairs.times[n] for n in chunk], device=device)
        lag = torch.arange(min(int(t[0]) + 1, pairs.lags), device=device).unsqueeze(1)
        there = t >= lag  # the last step comes first, so the windows still running do too
        b = torch.arange(pairs.batch, device=device)
        s = (t - lag)[there].unsqueeze(1)
        n = number.expand_as(there)[there].unsqueeze(1)
        rows = (s * pairs.batch + b).flatten()
        place = ((s * pairs.batch + b) * len(pairs.times) + n).flatten()
        none = rows.new_empty(0)
        sizes = tuple((there.sum(1) * pairs.batch).tolist())
        windows = Windows(Steps(sizes, reverse=True), rows, none, none, none, none)
        return cls(windows, sizes[0], rows[: sizes[0]], place)
