"""The layer of a linear recurrent unit: the recurrence, and the output that sees all its state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt import init
from bptt._src.recurrent import Recurrent
from bptt._src.signatures import Device
from bptt.cells import LRU as CELL


class LRU(nn.Module):
    """The linear recurrent unit, with its output: y_t = Re(C s_t) + D x_t.

    s_t = λ ⊙ s_{t-1} + exp(γ) ⊙ (B x_t), complex and diagonal: A. Orvieto et al.,
    arXiv:2303.06349 (2023); :mod:`bptt.cells.lru` has the step. It is linear in x; the paper puts
    what is not, a normalisation and a connection around it between two such layers.

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of complex units H.
        output_size: the size O of the output; None: I.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        zoneout: the probability with which, in training, a unit keeps its state of the step before
            (:mod:`bptt.cells.zoneout`), both of its parts; ``recurrent.zoneout`` may change later.
        r_min: the smallest |λ| to begin with.
        r_max: the greatest one.
        max_phase: the greatest angle of λ to begin with, in radians.
        device: where the parameters are.
        dtype: of the parameters.

    B, ν, θ and γ are the parameters of ``recurrent``, a :class:`bptt.Recurrent` without bias;
    ``of_state.weight`` [O, 2·H] has Re C beside -Im C, and ``of_input.weight`` [O, I] is D, a
    matrix where the paper's own code has its diagonal. They begin normally distributed, with the
    variances 1/H, for each part, and 1/I.

    Raises:
        ValueError: a size is not positive, or ``zoneout`` is below 0 or not below 1.
        ConfigError: the ring's radii or ``max_phase`` are out of range, as in
            :func:`bptt.init.ring_`.

    >>> import torch, bptt
    >>> lru = bptt.LRU(10, 64, r_min=0.9, r_max=0.999)
    >>> y, (h_n, k_n) = lru(torch.randn(5, 3, 10))
    >>> y.shape, h_n.shape
    (torch.Size([5, 3, 10]), torch.Size([1, 3, 64]))
    """

    takes_carry = takes_credit = takes_unbatched = True
    """What :func:`bptt.unroll` asks, as of the modules of torch.nn's kinds."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        batch_first: bool = False,
        zoneout: float = 0.0,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        output_size = input_size if output_size is None else output_size
        if output_size < 1:
            raise ValueError(f"bptt.LRU: output_size must be at least 1, got {output_size}")
        how: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.ring = (r_min, r_max, max_phase)
        self.recurrent = Recurrent(
            CELL, input_size, hidden_size, batch_first=batch_first, zoneout=zoneout, **how
        )
        self.of_state = nn.Linear(2 * hidden_size, output_size, **how)
        self.of_input = nn.Linear(input_size, output_size, **how)
        self.batch_first = batch_first
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        init.ring_(self.recurrent, *self.ring)
        inputs, hidden = self.recurrent.input_size, self.recurrent.hidden_size
        nn.init.normal_(self.of_state.weight, 0, 1 / math.sqrt(hidden))
        nn.init.normal_(self.of_input.weight, 0, 1 / math.sqrt(inputs))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None, **options: Any) -> Any:
        """Run the layer over a sequence.

        Args:
            input: [T, B, I], or [B, T, I] with ``batch_first``, or [T, I] unbatched, or a
                PackedSequence.
            hx: the initial state, its real and its imaginary part, each [1, B, H], or [1, H]
                unbatched. Zeros by default.
            options: ``credit``, ``carry``, ``resets`` and ``generator``, as for
                :class:`bptt.Recurrent`.

        Returns:
            ``(output, (h_n, k_n))``: the output, [T, B, O], laid out like the input, and the parts
            of the final state, shaped like ``hx``.

        Raises:
            RuntimeError: a size does not fit the module.
        """
        _, final, ((h, k),) = self.recurrent(input, hx, return_states=True, **options)
        if isinstance(input, PackedSequence):
            return h._replace(data=self._output(input.data, h.data, k.data)), final
        return self._output(input, h, k), final

    def _output(self, x: Tensor, h: Tensor, k: Tensor) -> Tensor:
        y: Tensor = self.of_state(torch.cat([h, k], dim=-1)) + self.of_input(x)
        return y
