"""What a measurement is given: a module and its inputs, checked, and where time and batch lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.calls import refuse_cell
from bptt.flow.network import as_ours
from bptt.pytree import check_leaves, map_tensors, tensors_of


class Layout(NamedTuple):
    """Where time and batch lie in the inputs, and the batch in the state."""

    steps: int
    batch: int | None
    """None where there is no dimension of it."""
    time: int
    state_dim: int

    @classmethod
    def of(
        cls,
        module: Any,
        inputs: Any,
        batch_first: bool | None,
        state_batch_dim: int | None,
        function: str = "gradient_flow",
    ) -> Layout:
        """Find it out, as :func:`bptt.unroll` does.

        Raises:
            ValueError: the inputs are not all of the same number of steps, or ``batch_first`` is
                not what the module says.
        """
        own = getattr(module, "batch_first", None)
        if None not in (own, batch_first) and bool(own) is not bool(batch_first):
            raise ValueError(
                f"{function}: batch_first={batch_first} was given, and the module has "
                f"batch_first={own}; leave it out"
            )
        first = bool(own if batch_first is None else batch_first)
        tensors = tensors_of(inputs)
        batched = 3 if isinstance(module, nn.RNNBase) else 2
        is_batch = bool(tensors) and tensors[0].dim() >= batched
        time = int(first and is_batch)
        lengths = {x.shape[time] if x.dim() > time else 0 for x in tensors}
        if len(lengths) != 1 or 0 in lengths:
            layout = "[B, T, ...]" if first else "[T, B, ...]"
            raise ValueError(
                f"{function}: expected inputs {layout}, all of the same number of steps, at "
                f"least one; got {', '.join(str(tuple(x.shape)) for x in tensors) or 'no tensor'}"
            )
        dim = getattr(module, "state_batch_dim", 1) if state_batch_dim is None else state_batch_dim
        batch = tensors[0].shape[1 - time] if is_batch else None
        return cls(lengths.pop(), batch, time, int(dim))

    def piece(self, inputs: Any, t: int, steps: int = 1) -> Any:
        """Return the inputs of one step, or of more."""
        return map_tensors(lambda x: x.narrow(self.time, t, steps), inputs)

    def by_sequence(self, g: Tensor, dim: int) -> Tensor:
        """Lay out [n, ...] as [n, B, rest], the batch being dimension ``dim`` of what n counts."""
        if self.batch is None:
            return g.reshape(len(g), 1, -1)
        return g.movedim(1 + dim, 1).flatten(2) if g.dim() > 2 else g.unsqueeze(2)


@dataclass(frozen=True)
class Given:
    """The arguments that all measurements have, checked."""

    function: str
    """The function that messages name."""
    module: Any
    ours: Any
    """The module as one of bptt's networks, or None."""
    inputs: Any
    state: Any
    layout: Layout
    resets: Tensor | None
    """[T] or [T, B], time first."""

    @classmethod
    def of(
        cls,
        function: str,
        module: Any,
        inputs: Any,
        state: Any,
        *,
        resets: Tensor | None = None,
        state_batch_dim: int | None = None,
        batch_first: bool | None = None,
    ) -> Given:
        """Check the arguments.

        Args:
            function: which the messages name.
            module: what :func:`bptt.unroll` takes, in one direction.
            inputs: [T, B, ...], or a pytree of such; [B, T, ...] where ``batch_first``.
            state: the initial state; None where the module knows how to begin.
            resets: [T], or [T, B] ([B, T] where ``batch_first``).
            state_batch_dim: where the batch lies in each of the state's tensors.
            batch_first: whether inputs are [B, T, ...]; None: what the module says.

        Raises:
            RuntimeError: it is called under ``torch.inference_mode()``.
            TypeError: the module cannot be called, or takes single steps; or the state contains
                an object whose tensors cannot be seen.
            ValueError: sizes do not fit, the module has two directions, or something is on the
                meta device.
        """
        _check_module(function, module)
        if isinstance(inputs, PackedSequence):
            raise ValueError(
                f"{function}: expected inputs [T, B, ...], got a PackedSequence; look at sequences "
                "of the same length together, or at one at a time"
            )
        layout = Layout.of(module, inputs, batch_first, state_batch_dim, function)
        if layout.batch == 0:
            raise ValueError(f"{function}: expected one sequence at least, got a batch of 0")
        ours = as_ours(module)
        if ours is not None and state_batch_dim not in (None, 1):
            raise ValueError(
                f"{function}: state_batch_dim={state_batch_dim} was given, and the state of a "
                f"{type(module).__name__} is [layers, B, ...]; leave it out"
            )
        if state is not None:
            check_leaves(state, function, "the initial state")
        _check_devices(function, module, inputs, state)
        resets = _time_first(function, resets, layout)
        return cls(function, module, ours, inputs, state, layout, resets)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's parameters, as far as they are known."""
        return list(self.module.parameters()) if isinstance(self.module, nn.Module) else []

    def needs_batch(self) -> None:
        """Refuse inputs without a batch, for a module that is neither bptt's nor torch.nn's."""
        if self.ours is None and self.layout.batch is None:
            raise ValueError(
                f"{self.function}: expected inputs with a batch, [T, B, ...], for a module that is "
                "neither bptt's nor torch.nn's; add a dimension, inputs.unsqueeze(1)"
            )


def _check_module(function: str, module: Any) -> None:
    if not callable(module):
        raise TypeError(
            f"{function}: expected a recurrent module, or a function "
            f"(inputs, state) -> (outputs, state), got {module!r}"
        )
    refuse_cell(module, function)
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{function}: no gradient can be found under torch.inference_mode(); leave it out, "
            "or use torch.no_grad()"
        )
    if getattr(module, "bidirectional", False):
        raise ValueError(
            f"{function}: the module is bidirectional: its outputs and states depend on later "
            "steps too, so that a loss has no lag; use bidirectional=False"
        )


def _check_devices(function: str, module: Any, inputs: Any, state: Any) -> None:
    own = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    if any(v.is_meta for v in (*own, *tensors_of(inputs), *tensors_of(state))):
        raise ValueError(
            f"{function}: there is nothing to measure on the meta device: its tensors have no "
            "values; move the module and its inputs to another one"
        )


def _time_first(function: str, resets: Tensor | None, layout: Layout) -> Tensor | None:
    """Check resets, and bring them to [T] or [T, B]."""
    if resets is None:
        return None
    T, B = layout.steps, layout.batch or 1
    both, words = ((B, T), "[B, T]") if layout.time else ((T, B), "[T, B]")
    is_bool = isinstance(resets, Tensor) and resets.dtype == torch.bool
    if not is_bool or tuple(resets.shape) not in ((T,), both):
        found = type(resets).__name__
        if isinstance(resets, Tensor):
            found = f"{resets.dtype} of {tuple(resets.shape)}"
        raise ValueError(
            f"{function}: expected resets bool of shape {(T,)} or {both}, [T] or {words}, "
            f"got {found}"
        )
    resets = resets.detach()
    return resets.t() if layout.time and resets.dim() == 2 else resets
