"""Dale's law: a unit excites all that it is connected to, or inhibits all."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)


class _Dale(nn.Module):
    """W = |V| ⊙ D, where a column of D holds its unit's sign, and zeros on the diagonal."""

    signs: Tensor

    def __init__(self, like: Tensor, excitatory: int, self_connections: bool) -> None:
        super().__init__()
        H = like.shape[1]
        signs = torch.ones(H, H, dtype=like.dtype, device=like.device)
        signs[:, excitatory:] = -1
        if not self_connections:
            signs.fill_diagonal_(0)
        self.register_buffer("signs", signs.repeat(len(like) // H, 1))

    def forward(self, V: Tensor) -> Tensor:
        return V.abs() * self.signs

    def right_inverse(self, W: Tensor) -> Tensor:
        """Of a W that obeys the law; of others the absolute value is taken."""
        return W


def obeys_dales_law(module: nn.Module) -> bool:
    """Whether the recurrent weights of a module are constrained by :func:`dales_law`."""
    return any(isinstance(part, _Dale) for part in module.modules())


def dales_law(
    module: M,
    excitatory: float = 0.8,
    *,
    self_connections: bool = False,
    radius: float | None = None,
) -> M:
    """Constrain each unit's outgoing recurrent weights to one sign, by a parametrization, in place.

    The first units of each layer and direction are excitatory, the others inhibitory: each
    ``weight_hh`` becomes |V| with the signs of its columns, and training changes V. The
    weights of the inhibitory units are scaled once, so that excitation and inhibition balance:
    a row of ``weight_hh`` has the sum 0 on average. H. F. Song, G. R. Yang and X.-J. Wang, PLOS
    Computational Biology 12 (2016), who also set the spectral radius of the result.

    Of the weights before, only the magnitudes are kept: an orthogonal matrix, an identity or a
    spectral radius set by :mod:`bptt.init` is lost. Give ``radius`` instead.

    The parameter's name is ``parametrizations.weight_hh_l0.original`` from here on;
    ``torch.nn.utils.parametrize.remove_parametrizations`` leaves the weights as they are.

    Args:
        module: a recurrent module, such as ``bptt.Recurrent(bptt.cells.RATE, 3, 100)``, whose cell
            has a ``weight_hh``.
        excitatory: the share of units that are excitatory, from 0 to 1.
        self_connections: whether a unit may be connected to itself.
        radius: the initial spectral radius of each ``weight_hh`` under the law, with its signs and
            without self-connections: all its weights are scaled by one number. Training may change
            it. None: it is not set.

    Returns:
        The module.

    Raises:
        TypeError: it has no recurrent weights.
        ValueError: the share is not between 0 and 1, or the module has a projection, or obeys the
            law already; or ``radius`` is not a finite number above 0, is given for a cell of
            several gates, whose blocks of weights have no eigenvalues in common, or for weights
            that have no eigenvalue but 0. Then the module is unchanged.

    >>> import torch, bptt
    >>> rates = bptt.cells.dales_law(bptt.Recurrent(bptt.cells.RATE, 3, 10))
    >>> signs = rates.weight_hh_l0.sign()
    >>> signs[0].int().tolist(), signs[:, 9].int().tolist()
    ([0, 1, 1, 1, 1, 1, 1, 1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, -1, -1, 0])
    >>> rates = bptt.cells.dales_law(bptt.Recurrent(bptt.cells.RATE, 3, 10), radius=0.9)
    >>> round(torch.linalg.eigvals(rates.weight_hh_l0).abs().max().item(), 4)
    0.9
    """
    if not 0 <= excitatory <= 1:
        raise ValueError(f"bptt.cells.dales_law: excitatory must be from 0 to 1, got {excitatory}")
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise ValueError(
            "bptt.cells.dales_law: radius must be a finite number above 0 (weights of 0 would not "
            f"learn: |V| has no slope there), got {radius}"
        )
    laws = []
    for name, p in _recurrent_weights(module).items():
        H = p.shape[1]
        n = round(excitatory * H)
        law = _Dale(p, n, self_connections)
        scale = torch.ones(H, dtype=p.dtype, device=p.device)
        scale[n:] = n / (H - n) if 0 < n < H else 1
        if radius is not None:
            scale *= _factor(law(p.detach() * scale), radius)
        laws.append((name, p, law, scale))
    for name, p, law, scale in laws:
        with torch.no_grad():
            p.mul_(scale)
        parametrize.register_parametrization(module, name, law, unsafe=True)
    return module


def _recurrent_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    if any(name.startswith("parametrizations.weight_hh") for name, _ in module.named_parameters()):
        raise ValueError(
            "bptt.cells.dales_law: the recurrent weights are parametrized already: call it once on "
            "a new module, with all of its options, and before other parametrizations"
        )
    weights = {n: p for n, p in module.named_parameters(recurse=False) if n.startswith("weight_hh")}
    if not weights or not all(p.numel() for p in weights.values()):
        raise TypeError(
            "bptt.cells.dales_law: expected a recurrent module with a weight_hh, got "
            f"{type(module).__name__}"
        )
    if getattr(module, "proj_size", 0):
        raise ValueError(
            "bptt.cells.dales_law: the units of a projected output have no signs: leave "
            "proj_size out"
        )
    return weights


def _factor(W: Tensor, radius: float) -> float:
    """Return what a matrix has to be multiplied by to have a spectral radius."""
    blocks = len(W) // W.shape[1]
    if blocks != 1:
        raise ValueError(
            "bptt.cells.dales_law: radius needs a cell with one recurrent matrix, but this one has "
            f"{blocks}, one for each gate: leave radius out"
        )
    now = float(torch.linalg.eigvals(W.double()).abs().max())
    if not (math.isfinite(now) and now > 0):
        raise ValueError(
            f"bptt.cells.dales_law: the recurrent weights have the spectral radius {now:g}, which "
            f"cannot be scaled to {radius:g}: draw them anew, or take more units or "
            "self_connections=True"
        )
    return radius / now
