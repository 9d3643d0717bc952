"""A network's steps one by one, where nothing is learnt and each needs the outputs of the last.

A call of a module costs more than a small step: the input is laid out, the state is checked and
split by layers, the weights are looked up, the engine is chosen, and its call is written down. Here
that is done once. Native kernels are called as often as it takes with the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.dtypes import computed_in
from bptt._src.engines import native
from bptt._src.engines.backend import engine_for
from bptt._src.engines.call import Call
from bptt._src.engines.guard import dtype_of_autocast
from bptt._src.engines.kernel_library import library
from bptt._src.layers import Layers
from bptt._src.steps import Steps
from bptt.cells import State, Weights


class SingleSteps:
    """A network of one direction on a CPU, run step by step for its outputs alone.

    The outputs are those of the module, with native kernels to the bit. No graph is recorded. The
    parameters are read at each step, so that it sees what is written into them, but not what is put
    in their place.

    Args:
        network: the network, as :func:`takes` takes it.
        state: the state before the first step, each of its tensors [L, B, H]; it is not changed.
    """

    def __init__(self, network: Layers, state: Tensor | tuple[Tensor, ...]) -> None:
        given = (state,) if isinstance(state, Tensor) else state
        with torch.inference_mode(False):
            before = tuple(s.detach().clone() for s in given)
            after = tuple(torch.empty_like(s) for s in before)
            self.states, self.turn = (before, after), 0
            batch, H = before[0].shape[1:]
            self.input = before[0].new_zeros(1, batch, network.input_size)
            outputs = [before[0].new_empty(1, batch, H) for _ in range(network.num_layers)]
            both = ((before, after), (after, before))
            self.runs = [
                [
                    _bound(_call(network, n, x, _of_layer(one, n)), y, _of_layer(other, n))
                    for n, (x, y) in enumerate(pairwise((self.input, *outputs)))
                ]
                for one, other in both
            ]
        self.output = outputs[-1]
        """That of the last step, [1, B, H]; the next one overwrites it."""

    @property
    def state(self) -> State:
        """The state after the last step, each of its tensors [L, B, H]; overwritten likewise."""
        return self.states[self.turn]

    def __call__(self, x: Tensor) -> None:
        """Take a step from an input, [1, B, I]."""
        self.input.copy_(x)
        for run in self.runs[self.turn]:
            run()
        self.turn = 1 - self.turn


def _of_layer(state: State, n: int) -> State:
    return tuple(s[n : n + 1] for s in state)


def _call(network: Layers, n: int, x: Tensor, state: State) -> Call:
    w = (None if p is None else p.detach() for p in network._weights(n, False))
    return Call(network._stepped(), x, state, Weights(*w), Steps((x.shape[1],)))  # type: ignore[arg-type]


def _bound(call: Call, y: Tensor, final: State) -> Callable[[], None]:
    """Return what runs a call, as it is now, and writes to its output and its final state."""
    engine: Any = engine_for(call)
    if engine is not native:

        def run() -> None:
            found = engine.forward(call, False)
            for t, new in zip((y, *final), (found[0], *found[1]), strict=True):
                t.copy_(new)

        return run
    return _Native(*native.written(call, y, final))


class _Native:
    """A call of the library, as it was written down, and the memory whose addresses it holds."""

    def __init__(self, written: bytes, memory: object) -> None:
        self.written, self.memory, self.forward = written, memory, library().bptt_forward

    def __call__(self) -> None:
        if self.forward(self.written) != 0:
            raise MemoryError("bptt: no memory for the work space of a step")


def takes(network: nn.Module) -> bool:
    """Whether :class:`SingleSteps` computes what a call of the network would."""
    if not isinstance(network, Layers) or type(network).forward is not Layers.forward:
        return False
    if network.bidirectional or network.proj_size or has_hooks(network):
        return False
    weight = network._weights(0, False).ih
    dtype, device = weight.dtype, weight.device
    if not weight.is_cpu or computed_in(dtype, device) is not dtype:
        return False
    if not all(p.is_contiguous() for p in network.parameters()):
        return False
    return dtype_of_autocast(device) is None and not (
        network.training and (network.dropout or network.zoneout)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of a module."""
    own = (module._forward_hooks, module._forward_pre_hooks)
    return any(own) or bool(nn.modules.module._has_any_global_hook())
