"""What a measurement is given: a module and its inputs, checked, and where time and batch lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt._src.flow.network import as_ours
from bptt._src.layers import Layers
from bptt._src.layout import Layout, declared, unwrapped
from bptt._src.pytree import check_leaves, tensors_of
from bptt._src.unroll.calls import refuse_cell


@dataclass(frozen=True)
class Given:
    """The arguments that all measurements have, checked."""

    function: str
    """The function that messages name."""
    module: Any
    ours: Layers | None
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
        module = bare(module)
        layout = Layout.of(module, inputs, batch_first, state_batch_dim, where=function)
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
        at = layout.by_time("resets", resets, function)
        return cls(function, module, ours, inputs, state, layout, at)

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
    if declared(module, "bidirectional", False):
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


def bare(module: Any) -> Any:
    """Return the module inside wrappers that would do more than run it.

    DistributedDataParallel would talk to the other processes, which may not measure, and a compiled
    module be compiled once more, for single steps. What shards the parameters stays.
    """
    inside = unwrapped(module)
    return module if _is_sharded(module) else inside


def _is_sharded(module: Any) -> bool:
    sharding = ("FullyShardedDataParallel", "DeepSpeedEngine")
    parts = module.modules() if isinstance(module, nn.Module) else []
    return any(type(part).__name__ in sharding for part in parts)
