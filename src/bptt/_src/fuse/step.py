"""A cell of the user's as a function of lists of tensors: inputs, states, and what it owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.fuse.forms import form_of, take
from bptt._src.layout import unwrapped
from bptt._src.pytree import check_leaves, flatten, leaves_of, map_tensors
from bptt._src.unroll.buffers import modules_in
from bptt._src.unroll.calls import pair
from bptt._src.unroll.stepwise import RETURNS_OF_CELL
from bptt.errors import FuseError


class Tree:
    """The form of a pytree, whose tensors are given anew."""

    def __init__(self, tree: Any) -> None:
        leaves, self._rebuild = flatten(tree)
        self._leaves = [None if isinstance(v, Tensor) else v for v in leaves]
        self._where = [i for i, v in enumerate(leaves) if isinstance(v, Tensor)]
        self._is_tensor = isinstance(tree, Tensor)
        self._type = Tensor if self._is_tensor else type(tree)
        self.form = form_of(tree)
        """None: torch.compile cannot take it apart."""

    def __len__(self) -> int:
        return len(self._where)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self._form() == other._form()

    __hash__ = None  # type: ignore[assignment]

    def _form(self) -> tuple[Any, ...]:
        return self._type, self._where, self._leaves

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """Return the pytree with these tensors."""
        if self._is_tensor:
            return tensors[0]
        leaves = list(self._leaves)
        for i, t in zip(self._where, tensors, strict=True):
            leaves[i] = t
        return self._rebuild(leaves)

    def tensors(self, tree: Any, what: str) -> list[Tensor]:
        """Return the tensors of a pytree of this form.

        Raises:
            ValueError: it is of another one.
        """
        if self._is_tensor and isinstance(tree, Tensor):
            return [tree]
        leaves = leaves_of(tree)
        where = [i for i, v in enumerate(leaves) if isinstance(v, Tensor)]
        others = [None if isinstance(v, Tensor) else v for v in leaves]
        if (type(tree), where, others) != self._form():
            raise self._refusal(tree, what)
        return [leaves[i] for i in where]

    def taken(self, tree: Any, what: str) -> list[Tensor]:
        """Do the same where torch.compile looks on."""
        assert self.form is not None
        found: list[Tensor] = []
        if not take(self.form, tree, found):
            raise self._refusal(tree, what)
        return found

    def _refusal(self, tree: Any, what: str) -> ValueError:
        return ValueError(
            f"bptt.fuse: {what} has another form than the example had: expected "
            f"{self._type.__name__} of {len(self)} tensors, got {type(tree).__name__}"
        )


class _Calls(nn.Module):
    """A function as a module, with the modules that it uses."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        found = modules_in(function)
        inner = {m for module in found for m in module.modules() if m is not module}
        self.used = nn.ModuleList([m for m in found if m not in inner])

    def forward(self, x: Any, state: Any) -> Any:
        return self.function(x, state)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class CellStep:
    """One step of a cell, ``(inputs, states, own) -> (outputs, states)``, all lists of tensors.

    Args:
        cell: a module or function ``(x_t, state) -> (output, state)``, or one of torch.nn's cells.
        x: an example of x_t, [B, ...], or a pytree of such.
        state: an example of the state, each of its tensors [B, ...].

    Raises:
        TypeError: the cell cannot be called so, or returns something else.
        bptt.errors.FuseError: there is no state, or one that is not of [B, units].
    """

    def __init__(self, cell: Any, x: Any, state: Any) -> None:
        self.cell = cell
        self.module = cell if isinstance(cell, nn.Module) else _Calls(cell)
        self._gives_state = isinstance(unwrapped(cell), nn.RNNCellBase)
        check_leaves(x, "bptt.fuse", "x_t")
        check_leaves(state, "bptt.fuse", "the state")
        self.x, self.state = Tree(x), Tree(state)
        self.output: Tree | None = None
        if not len(self.x) or not len(self.state):
            raise FuseError(
                "bptt.fuse: x_t and the state must each hold a tensor, as an example of what the "
                "cell is given at each step"
            )

    def own(self) -> tuple[tuple[str, ...], list[Tensor]]:
        """Return the parameters and buffers of the cell, and their names."""
        of: dict[str, Tensor] = dict(self.module.named_parameters())
        of.update(self.module.named_buffers())
        return tuple(of), list(of.values())

    def is_training(self) -> tuple[bool, ...]:
        """Return which of its modules are in training mode."""
        return tuple(m.training for m in self.module.modules())

    def __call__(
        self, x: Sequence[Tensor], state: Sequence[Tensor], own: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        given = self.x.filled(x), self.state.filled(state)
        output, after = self._pair(torch.func.functional_call(self.module, own, given))
        self.output = Tree(output)
        if Tree(after) != self.state:
            raise FuseError(
                f"bptt.fuse: the cell returns a state of another form than it was given: "
                f"{_form(after)} instead of {_form(given[1])}"
            )
        return [v for v in leaves_of(output) if isinstance(v, Tensor)], [
            v for v in leaves_of(after) if isinstance(v, Tensor)
        ]

    def once(self, x: Sequence[Tensor], state: Any) -> tuple[Any, Any]:
        """Run the cell itself, for one step.

        Args:
            x: the tensors of the inputs, [1, B, ...].
            state: the state, of the form of the example's.

        Returns:
            The output, [1, B, ...] or a pytree of such, and the state after the step.
        """
        found = self.cell(self.x.filled([t[0] for t in x]), state)
        output, after = self._pair(found)
        return map_tensors(_as_steps, output), after

    def _pair(self, found: Any) -> tuple[Any, Any]:
        if self._gives_state:
            return (found[0] if isinstance(found, tuple) else found), found
        return pair(found, "bptt.fuse: the cell", RETURNS_OF_CELL)


def _as_steps(output: Tensor) -> Tensor:
    return torch.stack([output])  # a copy: the output shares no memory with the state


def _form(tree: Any) -> str:
    shapes = [str(list(v.shape)) for v in leaves_of(tree) if isinstance(v, Tensor)]
    return f"{type(tree).__name__} of tensors {', '.join(shapes) or 'none'}"
