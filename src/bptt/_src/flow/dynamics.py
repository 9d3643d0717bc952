"""What a layer does to a gradient on its way: Jacobians, weights, activity, in one record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bptt._src.flow import jacobians
from bptt._src.flow.activity import activity
from bptt._src.flow.given import Given
from bptt._src.flow.lyapunov import exponents_of
from bptt._src.flow.trajectory import Trajectory, following
from bptt.cells import Cell

SEQUENCES = 4
"""So many sequences, the first ones, are looked at where derivatives are taken, ..."""

NUMBERS = 2**18
"""... and fewer where their states have more numbers than this, over all steps."""

EXPONENTS = 4


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What one layer does to a gradient, measured along a sequence.

    The Jacobians and exponents are those of the first sequences of the batch, four at most, one at
    least; the activity is that of all.
    """

    layer: int
    """From 0 on, the lowest first."""
    cell: Cell | None
    """None: unknown."""
    jacobian_norms: Float[Tensor, "batch time"] | None
    """‖∂state_t/∂state_{t-1}‖ of each step, float64; of an LSTM's h and c together."""
    bound: float | None
    """β_W · β_h, which no norm exceeds; None for cells with gates, and unknown ones."""
    weight_norm: float | None
    """β_W: the largest singular value of ``weight_hh``, of all gates' rows together."""
    slope: float | None
    """β_h = sup φ': 1 for tanh and ReLU, 1/4 for sigmoid; None for cells with gates."""
    spectral_radius: float | None
    """The largest absolute eigenvalue of W_hh; None for cells with gates."""
    alpha: Float[Tensor, " units"] | None
    """The share of its state that each leaky unit forgets in a step, [H] float64, or [1] where it
    is the same for all; None for cells without a leak."""
    saturated: float | None
    """The share of values where a unit, or a gate, is at its end."""
    dead: float
    """The share of units that never do anything."""
    gates: dict[str, tuple[float, float]] | None
    """For each gate the shares of values below 0.05 and above 0.95."""
    lyapunov: Float[Tensor, " k"] | None
    """The leading Lyapunov exponents, natural logarithms per step; None for a single step."""
    lyapunov_errors: Float[Tensor, " k"] | None
    """Their standard errors."""

    @property
    def mode(self) -> str | None:
        """The cell's name, torch.nn's where it has it: ``"RNN_TANH"``, ``"GRU"``, ``"LSTM"``..."""
        return None if self.cell is None else self.cell.name

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON: finite numbers of five digits, or null."""
        norms = None if self.jacobian_norms is None else self.jacobian_norms.mean(0).tolist()
        gates = None
        if self.gates is not None:
            gates = {name: [_number(v) for v in ends] for name, ends in self.gates.items()}
        leak = None if self.alpha is None else [float(1 / v) for v in self.alpha.aminmax()][::-1]
        numbers = ("bound", "weight_norm", "slope", "spectral_radius", "saturated", "dead")
        return {
            "layer": self.layer,
            "mode": self.mode,
            "jacobian_norms": None if norms is None else [_number(v) for v in norms],
            **{name: _number(getattr(self, name)) for name in numbers},
            "largest_singular_value": _number(self.weight_norm),
            "leak_steps": None if leak is None else [_number(v) for v in leak],
            "gates": gates,
            "lyapunov": _numbers(self.lyapunov),
            "lyapunov_errors": _numbers(self.lyapunov_errors),
        }


def measure(
    module: Any,
    inputs: Any,
    state: Any = None,
    *,
    resets: Tensor | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> tuple[Dynamics, ...]:
    """Measure what each layer of a recurrent module does to a gradient, along a sequence.

    Args:
        module: what :func:`bptt.unroll` takes; one that is neither bptt's nor torch.nn's counts
            as a single layer.
        inputs: [T, B, ...], or a nest of such.
        state: the initial state; None where the module knows how to begin.
        resets: [T], or [T, B] ([B, T] where ``batch_first``) bool: the state is set to zero before
            step t where it is true.
        state_batch_dim: where the batch lies in the state's tensors, as for
            :func:`bptt.unroll`.
        batch_first: whether inputs are [B, T, ...], likewise.

    Raises:
        ValueError: the module is bidirectional, or the inputs are packed.

    >>> import torch, bptt
    >>> (layer,) = measure(bptt.RNN(3, 8), torch.randn(30, 2, 3))
    >>> layer.jacobian_norms.shape, bool(layer.jacobian_norms.max() <= layer.bound)
    (torch.Size([2, 30]), True)
    """
    return measure_given(
        Given.of(
            "measure",
            module,
            inputs,
            state,
            resets=resets,
            state_batch_dim=state_batch_dim,
            batch_first=batch_first,
        )
    )


def measure_given(given: Given) -> tuple[Dynamics, ...]:
    """Measure as :func:`measure`, of arguments that have been checked."""
    with following(given) as layers:
        return tuple(_of(layer) for layer in layers)


def _of(trajectory: Trajectory) -> Dynamics:
    cell, w = trajectory.cell, trajectory.weights
    many = NUMBERS // (trajectory.steps * trajectory.size)
    units, few = activity(trajectory), trajectory.take(max(1, min(SEQUENCES, many)))
    there = trajectory.steps > trajectory.first  # any step whose state before it is known
    exponents = exponents_of(few, EXPONENTS) if trajectory.steps > trajectory.first + 1 else None
    phi, leak = (None, None) if cell is None else (cell.phi, cell.leak)
    is_plain = cell is not None and cell.is_plain
    return Dynamics(
        layer=trajectory.layer,
        cell=cell,
        jacobian_norms=jacobians.jacobian_norms(few) if there else None,
        bound=jacobians.bound(trajectory),
        weight_norm=None if w is None else jacobians.weight_norm(w),
        slope=None if phi is None else phi.slope,
        spectral_radius=None if w is None or not is_plain else jacobians.spectral_radius(w),
        alpha=None if w is None or leak is None else leak.of(w),
        saturated=units.saturated,
        dead=units.dead,
        gates=units.gates,
        lyapunov=None if exponents is None else exponents.exponents,
        lyapunov_errors=None if exponents is None else exponents.errors,
    )


def _number(v: float | None) -> float | None:
    return float(f"{v:.5g}") if v is not None and math.isfinite(v) else None


def _numbers(values: Tensor | None) -> list[float | None] | None:
    return None if values is None else [_number(v) for v in values.tolist()]
