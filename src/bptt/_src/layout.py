"""The dimensions of time and batch in a module's inputs, outputs, resets and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt._src.pytree import map_tensors, tensors_of

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile
    "_FabricModule": "module",
    "DeepSpeedEngine": "module",
}
_PACKAGES = ("torch", "lightning", "lightning_fabric", "pytorch_lightning", "deepspeed")


def unwrapped(module: Any) -> Any:
    """Return the module inside wrappers that do not change what it computes.

    These are torch's DistributedDataParallel, DataParallel, FullyShardedDataParallel,
    AveragedModel and compiled modules, and those of Lightning Fabric and DeepSpeed.
    """
    kind: Any = type(module)
    while (inside := _inside_of(kind)) is not None:
        module = getattr(module, inside)
        kind = type(module)
    return module


@cache
def _inside_of(kind: type) -> str | None:
    """Return the attribute in which a wrapper keeps its module; None if it is not a wrapper."""
    for base in kind.__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.split(".")[0] in _PACKAGES:
            return _WRAPPERS[base.__name__]
    return None


def declared(module: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of a module, or of the one inside a wrapper."""
    own = getattr(module, name, None)
    if own is None and isinstance(module, nn.Module):
        own = getattr(unwrapped(module), name, None)
    return default if own is None else own


@dataclass(frozen=True)
class Layout:
    """The dimensions of time and batch in a module's inputs, and of the batch in its state."""

    steps: int
    """T."""
    batch: int | None
    """B; None if the inputs have no batch dimension."""
    time: int
    """The time dimension of inputs and outputs, 0 or 1."""
    state_dim: int
    """The batch dimension of each of the state's tensors."""
    batch_first: bool
    """Whether resets for each sequence are [B, T]."""
    is_certain: bool
    """Whether the inputs have enough dimensions that one of them must be the batch."""

    @classmethod
    def of(
        cls,
        module: Any,
        inputs: Any,
        batch_first: bool | None = None,
        state_batch_dim: int | None = None,
        *,
        where: str = "bptt.unroll",
    ) -> Layout:
        """Find the layout from the arguments and the module's attributes.

        Args:
            module: any module; torch's wrappers are looked through.
            inputs: a tensor, a pytree of tensors, or a PackedSequence.
            batch_first: must agree with the module's own attribute, if it has one.
            state_batch_dim: the batch dimension of the state; by default the module's
                attribute of that name, or 1 as in torch.nn.
            where: the function that messages name.

        Raises:
            ValueError: ``batch_first`` contradicts the module, or the inputs differ in their
                number of steps.
        """
        own = declared(module, "batch_first")
        if own is not None and batch_first is not None and bool(own) is not bool(batch_first):
            raise ValueError(
                f"{where}: batch_first={batch_first} was given, but the module has "
                f"batch_first={own}; leave it out"
            )
        first = bool(own if batch_first is None else batch_first)
        dim = declared(module, "state_batch_dim", 1) if state_batch_dim is None else state_batch_dim
        if isinstance(inputs, PackedSequence):
            sizes = inputs.batch_sizes
            return cls(len(sizes), int(sizes[0]), 0, int(dim), first, True)
        tensors = tensors_of(inputs)
        least = 3 if _is_torch_layer(module) else 2  # the least number of dimensions with a batch
        is_batch = bool(tensors) and tensors[0].dim() >= least
        time = int(first and is_batch)
        lengths = {x.shape[time] if x.dim() > time else 0 for x in tensors}
        if len(lengths) != 1 or 0 in lengths:
            layout = "[B, T, ...]" if first else "[T, B, ...]"
            raise ValueError(
                f"{where}: expected inputs {layout}, all with the same number of steps, at "
                f"least one; got {', '.join(str(tuple(x.shape)) for x in tensors) or 'no tensor'}"
            )
        batch = tensors[0].shape[1 - time] if is_batch else None
        return cls(lengths.pop(), batch, time, int(dim), first, tensors[0].dim() >= 3)

    def piece(self, inputs: Any, first: int, end: int) -> Any:
        """Return the inputs of the steps ``first`` to ``end - 1``."""
        if (first, end) == (0, self.steps):
            return inputs
        return map_tensors(lambda x: x.narrow(self.time, first, end - first), inputs)

    def by_time(self, name: str, given: Any, where: str = "bptt.unroll") -> Tensor | None:
        """Check ``resets`` or ``carry`` and bring them to [T] or [T, B].

        Args:
            name: which of the two it is.
            given: [T], or one for each sequence: [T, B], or [B, T] with ``batch_first``.
            where: the function that messages name.

        Raises:
            TypeError: it is not a tensor.
            ValueError: its shape or dtype is wrong.
        """
        if given is None:
            return None
        kind = "bool" if name == "resets" else "floating-point"
        if not isinstance(given, Tensor):
            raise TypeError(
                f"{where}: {name} must be a {kind} tensor, got {type(given).__name__}; "
                f"torch.as_tensor({name}) makes one"
            )
        if given.dtype != torch.bool if name == "resets" else not given.is_floating_point():
            to = "bool()" if name == "resets" else "float()"
            raise ValueError(f"{where}: {name} must be {kind}, got {given.dtype}; use {name}.{to}")
        T, B, shape = self.steps, self.batch, tuple(given.shape)
        of_each = (B, T) if self.batch_first else (T, B)
        if shape != (T,) and (B is None or shape != of_each):
            letters = "[B, T], as batch_first=True" if self.batch_first else "[T, B]"
            also = "" if B is None else f" or {of_each}, [T] or {letters}"
            turned = shape == of_each[::-1] and None not in of_each
            raise ValueError(
                f"{where}: expected {name} of shape {(T,)}{also}, got {shape}"
                + ("; transpose it" if turned else "")
            )
        of_steps: Tensor = given.detach()
        return of_steps.t() if self.batch_first and of_steps.dim() == 2 else of_steps

    def as_given(self, of_steps: Tensor | None) -> Tensor | None:
        """Undo :meth:`by_time`: lay [T, B] out as the module expects it."""
        if of_steps is None or of_steps.dim() == 1 or not self.batch_first:
            return of_steps
        return of_steps.t()


def join(pieces: Sequence[Any], time: int) -> Any:
    """Join pieces, pytrees of the same structure, along the time dimension."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*map(tensors_of, pieces), strict=True)
    joined = iter([torch.cat(column, dim=time) for column in columns])
    return map_tensors(lambda _: next(joined), pieces[0])


def _is_torch_layer(module: Any) -> bool:
    """Whether an input of two dimensions is known to be [T, I], without a batch."""
    inside = unwrapped(module) if isinstance(module, nn.Module) else module
    if isinstance(inside, nn.RNNBase) or getattr(inside, "takes_unbatched", False):
        return True
    return isinstance(unwrapped(getattr(inside, "cell", None)), nn.RNNCellBase)
