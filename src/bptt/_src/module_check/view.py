"""A recurrent module as a function of its inputs, initial state and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt._src.autograd import devices_of
from bptt._src.flow.untouched import untouched
from bptt._src.layers import Layers
from bptt._src.layout import Layout, join, unwrapped
from bptt._src.pytree import is_float, leaves_of, map_tensors, named_leaves
from bptt._src.unroll.calls import pair

WHERE = "bptt.check_module"
Run = Callable[[Any, Any], tuple[Any, Any]]
"""``(inputs, state) -> (outputs, state)``: the module, called in one way or another."""


def floats(tree: Any) -> list[Tensor]:
    """Return the tensors of a pytree through which gradients can flow."""
    return [v for v in leaves_of(tree) if is_float(v)]


@dataclass(frozen=True, eq=False)
class View:
    """The module, what it is given, and the mode and the seed of each call.

    Every call begins with the buffers and attributes that the module had, so that what it remembers
    between two calls changes no other check than the one that looks for it.
    """

    module: Callable[..., Any]
    parts: tuple[nn.Module, ...]
    """The module, all inside it, and those that a function refers to."""
    inputs: Any
    state: Any
    """The initial state; None: the module's own."""
    layout: Layout
    training: bool
    seed: int

    def whole(self, inputs: Any, state: Any, **options: Any) -> tuple[Any, Any]:
        """Call the module once, with the seed."""
        with untouched(self.holder):
            self.reseed()
            return self.raw(_copied(inputs), _copied(state), **options)

    @cached_property
    def holder(self) -> nn.ModuleList:
        """All modules as one."""
        return nn.ModuleList(self.parts)

    @cached_property
    def devices(self) -> list[torch.device]:
        """The devices, other than the processor, from whose generators a call may draw."""
        return devices_of(list(self.holder.parameters()), list(self.holder.buffers()), self.inputs)

    def reseed(self) -> None:
        """Seed the generators of these devices alone, which torch.manual_seed would not."""
        torch.default_generator.manual_seed(self.seed)
        for device in self.devices:
            library = torch.get_device_module(device)
            if hasattr(library, "default_generators"):
                library.default_generators[device.index or 0].manual_seed(self.seed)
            else:
                library.manual_seed(self.seed)

    def raw(self, inputs: Any, state: Any, **options: Any) -> tuple[Any, Any]:
        """Call the module, and leave what it remembers and draws as it is."""
        for part in self.parts:
            part.training = self.training
        found = self.module(inputs, state, **options)
        return pair(found, f"{WHERE}: the module", "(outputs, state)")

    def in_pieces(self, cuts: tuple[int, ...]) -> Run:
        """Call the module piece by piece, each from the state that the one before returned."""

        def run(inputs: Any, state: Any) -> tuple[Any, Any]:
            outputs = []
            for first, end in pairwise((0, *cuts, self.layout.steps)):
                y, state = self.whole(self.layout.piece(inputs, first, end), state)
                outputs.append(y)
            return join(outputs, self.layout.time), state

        return run

    def row(self, inputs: Any, state: Any, b: int) -> tuple[Any, Any]:
        """Return the inputs and the state of one sequence, as a batch of one."""
        return (
            map_tensors(lambda v: v.narrow(1 - self.layout.time, b, 1), inputs),
            map_tensors(lambda v: v.narrow(self.layout.state_dim, b, 1), state),
        )

    def sequences(self, outputs: list[Any], states: list[Any]) -> tuple[Any, Any]:
        """Join the results of the sequences, the opposite of :meth:`row`."""
        return join(outputs, 1 - self.layout.time), join(states, self.layout.state_dim)

    def part(self, first: int, end: int, state: Any) -> View:
        """Return a view of some of the steps, from another state."""
        inputs = self.layout.piece(self.inputs, first, end)
        layout = replace(self.layout, steps=end - first)
        return replace(self, inputs=inputs, state=state, layout=layout)

    # ------------------------------------------------------------------- what it depends on

    @cached_property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that require gradients, by name, each once."""
        root = self.module if isinstance(self.module, nn.Module) else nn.ModuleList(self.parts)
        found = {p: name for name, p in root.named_parameters() if p.requires_grad}
        for part in self.parts:
            for name, p in part.named_parameters():
                if p.requires_grad:
                    found.setdefault(p, name)
        return [(name, p) for p, name in found.items() if is_float(p)]

    @cached_property
    def input_names(self) -> list[str]:
        """The names of the inputs' tensors that are differentiated."""
        return [f"x.{n}" if n else "x" for n, v in named_leaves(self.inputs) if is_float(v)]

    def state_names(self, state: Any, end: str) -> list[str]:
        """Name the tensors of a state; those of torch.nn and bptt as there: h_0, c_n.

        Args:
            state: any of its states.
            end: "0" for an initial one, "n" for a final one.
        """
        names = [n for n, v in named_leaves(state) if is_float(v)]
        inside = unwrapped(getattr(self.module, "cell", None))
        known = isinstance(self.module, Layers | nn.RNNBase) or isinstance(inside, nn.RNNCellBase)
        if names == [""] or (known and names == ["0", "1"]):
            return [f"{letter}_{end}" for letter in "hc"[: len(names)]]
        kind = "initial" if end == "0" else "final"
        return [f"{kind} {n}" if not n[:1].isdigit() else f"{kind} state[{n}]" for n in names]

    def leaves(self) -> tuple[Any, Any]:
        """Return the inputs and the state as leaves that require gradients."""

        def leaf(v: Tensor) -> Tensor:
            return v.detach().clone().requires_grad_(is_float(v))

        return map_tensors(leaf, self.inputs), map_tensors(leaf, self.state)

    def reached(self) -> list[Any]:
        """Return the states before each step, and the final one, detached."""
        states, state = [self.state], self.state
        with torch.no_grad():
            for t in range(self.layout.steps):
                _, state = self.whole(self.layout.piece(self.inputs, t, t + 1), state)
                states.append(state)
        return states


def _copied(tree: Any) -> Any:
    """Copy what a module might change in place."""
    return tree if isinstance(tree, PackedSequence) else map_tensors(Tensor.clone, tree)


def can_be_cut(view: View) -> bool:
    """Whether the state that the module returns is that from which it goes on."""
    inside = unwrapped(view.module) if isinstance(view.module, nn.Module) else view.module
    return not getattr(inside, "bidirectional", False)
