"""What a module's steps depend on besides their inputs: random numbers, buffers, training mode.

A segment that is run again sees them as in its first run, and afterwards all is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.autograd import random_state
from bptt._src.unroll.buffers import Buffers, Values, copies


class Circumstances:
    """Those of the forward pass.

    Args:
        modules: the modules that are run.
        devices: whose generators they may draw from, besides the processor's.
    """

    def __init__(self, modules: list[nn.Module], devices: list[torch.device]) -> None:
        self.devices, self.random = devices, random_state(devices)
        self.modes = [(m, m.training) for m in modules]
        self.buffers = Buffers(modules)
        self.first = self.last = self.buffers.values()
        self.first_copies = self.last_copies = copies(self.first)
        self.is_constant: list[bool] = []

    def note(self) -> None:
        """Look at them again; what has not changed stays the same object."""
        now = random_state(self.devices)
        if not all(torch.equal(a, b) for a, b in zip(now, self.random, strict=True)):
            self.random = now
        values = self.buffers.values()
        self.last_copies = copies(values, (self.last, self.last_copies))
        self.last = values

    @property
    def noted(self) -> tuple[list[Tensor], Values]:
        """The generators' states and copies of the buffers, as last looked at."""
        return self.random, self.last_copies

    def restore(self, random: list[Tensor], buffers: Values) -> None:
        """Set what was noted; the module gets copies of the buffers, which it may change."""
        self._set_random(random)
        triples = zip(self.is_constant, self.first, copies(buffers), strict=True)
        self.buffers.put([first if same else new for same, first, new in triples])

    def changed(self) -> list[Tensor]:
        """Return the buffers that the module has changed."""
        return [
            now
            for now, before, copy in self._now()
            if now is not None and not (now is before and torch.equal(now, copy))
        ]

    def settle(self) -> None:
        """Note at the end of the forward pass which buffers it has left alone."""
        self.is_constant = [
            now is before and (now is None or torch.equal(now, copy))
            for now, before, copy in self._now()
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Put the modules into their modes of the forward pass; afterwards all is as it was."""
        now, own = random_state(self.devices), self.buffers.values()
        switched = [(m, mode) for m, mode in self.modes if m.training is not mode]
        try:
            for m, mode in switched:
                m.training = mode
            yield
        finally:
            for m, mode in switched:
                m.training = not mode
            self._set_random(now)
            self.buffers.put(own)

    def _now(self) -> Iterator[tuple[Any, Any, Any]]:
        return zip(self.buffers.values(), self.first, self.first_copies, strict=True)

    def _set_random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, s in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(s, device)
