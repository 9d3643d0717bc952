"""All pairs in the networks of bptt and torch.nn: the gradients of many losses side by side.

The loss of step t travels back over states that are all there already, independently of those of
other steps. So the losses of a chunk of steps are windows that overlap, ``every=1, reach=lags``
(:mod:`bptt.kernels.windows`), and one recursion of the deltas goes back through all of them, layer
by layer from the top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bptt.cells import BY_MODE, Cell, State, Weights
from bptt.flow.cotangents import Cotangents
from bptt.flow.flow import StateFlow
from bptt.flow.pairs import Found, Pairs
from bptt.kernels.passes import Crossing, Engine
from bptt.kernels.sequence import engine_for, without_autocast
from bptt.kernels.steps import Steps
from bptt.kernels.windows import Windows
from bptt.recurrent import GRU, LSTM, RNN

OURS: dict[Any, Any] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
MOST_WINDOWS = 256
"""Side by side: more of them leave the processor's cache."""


def as_ours(module: Any) -> Any:
    """Give a network of torch.nn as one of bptt, with the same weights, and one of bptt itself.

    Returns:
        None for any other module, and where a subclass computes something of its own.
    """
    for theirs, ours in OURS.items():
        if getattr(type(module), "forward", None) is ours.forward and isinstance(module, ours):
            return module
        if isinstance(module, theirs) and type(module).forward is theirs.forward:
            copy = object.__new__(ours)
            copy.__dict__ = module.__dict__  # the parameters themselves
            return copy
    return None


@dataclass
class _Layer:
    """A layer after its forward pass, and what was found of it."""

    cell: Cell
    engine: Engine
    w: Weights
    x: Tensor
    initial: State
    y: Tensor
    kept: tuple[Tensor, ...]
    mask: Tensor | None
    """What its outputs are multiplied by on their way up, [N, P]: dropout."""
    norms: list[Float[Tensor, "batch losses time"]]
    """Of each tensor of the state."""


def through_layers(
    module: Any,
    inputs: Tensor,
    state: Any,
    begin: Callable[[Tensor], Cotangents],
    pairs: Pairs,
    resets: Tensor | None,
    budget: int,
    credited: bool,
) -> Found:
    """Follow the losses of a network of bptt.

    Args:
        module: a :class:`bptt.RNN`, GRU or LSTM in one direction.
        inputs: as it takes them.
        state: likewise, or None.
        begin: gives ∂L_t/∂y_t for the outputs, laid out as the module's.
        pairs: which to follow.
        resets: as for :class:`bptt.LSTM`.
        budget: bytes that the gradients of a chunk of losses may take.
        credited: whether to find the inputs' credit.
    """
    with torch.no_grad(), without_autocast(inputs.device):
        rows = module._rows(inputs)
        states = module._initial_state(rows, state)
        _, at_resets = module._crossing(rows, None, resets)
        at = Crossing(None, None if at_resets is None else at_resets.reshape(-1, 1))
        steps = Steps(rows.sizes)
        layers = _forward(module, rows.x.flatten(0, -2), states, steps, at, pairs)
        start = begin(module._output(rows, layers[-1].y))
        (d_y,) = start.outputs
        if module.batch_first and inputs.dim() == 3:
            d_y = d_y.transpose(0, 1)
        d_y = d_y.reshape(-1, d_y.shape[-1])
        credit = pairs.empty(inputs.device) if credited else None
        for chunk in _chunks(layers, pairs, budget):
            _follow(layers, steps, at, d_y, _Windows.of(chunk, pairs, inputs.device), credit)
    names = ("hidden", "cell")
    found = [
        StateFlow(n, name, pairs.completed(norms))
        for n, layer in enumerate(layers)
        for name, norms in zip(names, layer.norms, strict=False)
    ]
    return Found(start.losses, tuple(found), None if credit is None else pairs.completed(credit))


def _forward(
    module: Any, x: Tensor, states: State, steps: Steps, at: Crossing, pairs: Pairs
) -> list[_Layer]:
    x = x.to(module._dtype)
    cell, layers = BY_MODE[module.mode], []
    for n in range(module.num_layers):
        w, initial = module._weights(n, False), tuple(s[n] for s in states)
        engine = engine_for(cell, x, w)
        y, _, kept = engine.forward(cell, x, initial, w, steps, at, keep=True)
        mask = None
        if module.dropout and n < module.num_layers - 1:
            mask = nn.functional.dropout(torch.ones_like(y), module.dropout, module.training)
        norms = [pairs.empty(x.device) for _ in initial]
        layers.append(_Layer(cell, engine, w, x, initial, y, kept, mask, norms))
        x = y if mask is None else y * mask
    return layers


def _chunks(layers: list[_Layer], pairs: Pairs, budget: int) -> Iterator[list[int]]:
    """Split the losses, by number, the last step first, into those that are followed together."""
    of_row = max(_bytes_of_row(layer) for layer in layers)
    chunk: list[int] = []
    taken = 0
    for n in reversed(range(len(pairs.times))):
        more = min(pairs.times[n] + 1, pairs.lags) * pairs.batch * of_row
        full = taken + more > budget or (len(chunk) + 1) * pairs.batch > MOST_WINDOWS
        if chunk and full:
            yield chunk
            chunk, taken = [], 0
        chunk.append(n)
        taken += more
    yield chunk


def _bytes_of_row(layer: _Layer) -> int:
    """What a row of the windows takes: gradients that come in and go out, norms and indices."""
    from bptt.kernels import twin

    numbers = layer.x.shape[1] + layer.y.shape[1]
    if layer.engine is twin:  # and copies of what was kept, and as many local derivatives
        numbers += 3 * layer.w.ih.shape[0] + 3 * layer.y.shape[1]
    return numbers * layer.x.element_size() + 64


class _Windows(NamedTuple):
    """The windows of a chunk of losses, and where each of their rows belongs."""

    windows: Windows
    many: int
    """How many windows there are."""
    of_loss: Int64[Tensor, " windows"]
    """The row of the sequence in which each window's loss is."""
    place: Int64[Tensor, " rows"]
    """Where each row's norm goes in [B, N, T], flattened."""

    @classmethod
    def of(cls, chunk: list[int], pairs: Pairs, device: torch.device) -> _Windows:
        number = torch.tensor(chunk, device=device)
        t = torch.tensor([pairs.times[n] for n in chunk], device=device)
        lag = torch.arange(min(int(t[0]) + 1, pairs.lags), device=device).unsqueeze(1)
        there = t >= lag  # the last step comes first, so the windows still running do too
        b = torch.arange(pairs.batch, device=device)
        s = (t - lag)[there].unsqueeze(1)
        n = number.expand_as(there)[there].unsqueeze(1)
        rows = (s * pairs.batch + b).flatten()
        place = ((b * len(pairs.times) + n) * pairs.steps + s).flatten()
        none = rows.new_empty(0)
        sizes = tuple((there.sum(1) * pairs.batch).tolist())
        windows = Windows(Steps(sizes, reverse=True), rows, none, none, none, none)
        return cls(windows, sizes[0], rows[: sizes[0]], place)


def _follow(
    layers: list[_Layer],
    steps: Steps,
    at: Crossing,
    d_y: Tensor,
    chunk: _Windows,
    credit: Tensor | None,
) -> None:
    """Follow the losses of a chunk from the top layer to the inputs; the results are put in place.

    Where a window begins, the gradient of its loss is that of a final state.
    """
    windows, W = chunk.windows, chunk.many
    first = d_y.index_select(0, chunk.of_loss)
    more: Tensor | None = None
    for n in reversed(range(len(layers))):
        layer = layers[n]
        d_state = (first, *(first.new_zeros(W, s.shape[1]) for s in layer.initial[1:]))
        norms = first.new_empty(len(windows.rows), len(layer.norms), dtype=torch.float64)
        found = layer.engine.backward(
            layer.cell, layer.x, layer.initial, layer.w, steps, at, layer.y, layer.kept,
            more, d_state, (bool(n) or credit is not None, *(False,) * 5), windows, True, norms,
        )  # fmt: skip
        norms[:W, 1:] = torch.nan  # no loss is of the cell state itself
        for place, values in zip(layer.norms, norms.unbind(1), strict=True):
            place.view(-1)[chunk.place] = values
        more = found.x
        if n:
            assert more is not None
            mask = layers[n - 1].mask
            if mask is not None:
                more = more.mul_(mask.index_select(0, windows.rows))
            first = more[:W].clone()
            more[:W] = 0
    if credit is not None and more is not None:
        flows = more.mul_(layers[0].x.index_select(0, windows.rows)).sum(1)
        credit.view(-1)[chunk.place] = flows.double()
