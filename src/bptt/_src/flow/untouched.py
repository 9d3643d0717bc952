"""Running a module to measure it, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.autograd import devices_of, random_state


@contextmanager
def untouched(module: Any, *, evaluating: bool = False) -> Iterator[None]:
    """Leave a module as it was: its buffers, its attributes, and the mode that it is in.

    Within the ``with`` block the module works on copies of its buffers, so that what BatchNorm
    counts, or a module remembers from one call to the next, is forgotten afterwards.

    Args:
        module: the module, or a method of one; of any other function nothing is known.
        evaluating: whether to put the module into evaluation mode meanwhile.
    """
    owner = getattr(module, "__self__", module)
    parts = list(owner.modules()) if isinstance(owner, nn.Module) else []
    attributes = [(part.training, dict(vars(part))) for part in parts]
    buffers = [dict(part.named_buffers(recurse=False, remove_duplicate=False)) for part in parts]
    copies: dict[Tensor, Tensor] = {}
    try:
        for part, own in zip(parts, buffers, strict=True):
            for name, buffer in own.items():
                _set_buffer(part, name, copies.setdefault(buffer, buffer.detach().clone()))
            if evaluating:
                part.training = False
        yield
    finally:
        for part, own, (training, before) in zip(parts, buffers, attributes, strict=True):
            for name, buffer in own.items():
                _set_buffer(part, name, buffer)
            part.training = training
            _put_back(vars(part), before)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _set_buffer(part: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(part, torch.jit.ScriptModule):
        setattr(part, name, value)
    else:
        part._buffers[name] = value


@contextmanager
def same_random_numbers(*given: Any) -> Iterator[None]:
    """Leave torch's generators as they were: of the processor, and of the devices of tensors."""
    devices = devices_of(*given)
    before = random_state(devices)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        for device, state in zip(devices, before[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)
