"""Lyapunov exponents: how fast neighbouring states part, in the long run.

A small change of the state grows, over many steps, like e^{λ_1 t}; an area like e^{(λ_1 + λ_2) t},
and so on. With λ_1 > 0 the network is chaotic, and its gradient explodes along almost all
directions; with λ_1 < 0 it forgets where it started, and the gradient vanishes. Found by QR:

    Q_{t+1} R_{t+1} = J_{t+1} Q_t,        λ_i = mean over t of log |R_ii|,

G. Benettin, L. Galgani, A. Giorgilli and J.-M. Strelcyn, Meccanica 15 (1980); for recurrent
networks: R. Engelken, F. Wolf and L. F. Abbott, arXiv:2006.02427. Only J·Q is needed for the
leading k, never J itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.flow.given import Given
from bptt._src.flow.trajectory import Trajectory, following

BLOCKS = 10
"""Pieces of time whose means are compared, for the error."""


@dataclass(frozen=True, eq=False)
class LyapunovExponents:
    """What :func:`bptt.lyapunov_exponents` found."""

    exponents: Float[Tensor, " k"]
    """λ_1 ≥ λ_2 ≥ …, natural logarithms per step, float64. -inf where a direction is lost in a
    single step, as in a network of ReLUs that are all off."""
    errors: Float[Tensor, " k"]
    """Their standard errors, from the means of pieces of time of each sequence; NaN where there
    are fewer than two such."""
    steps: int
    """How many steps were counted, of each sequence."""
    warmup: int
    """How many were run before, to turn the directions into place."""


def lyapunov_exponents(
    module: Any,
    inputs: Any,
    k: int | None = None,
    state: Any = None,
    warmup: int | None = None,
    *,
    resets: Tensor | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> LyapunovExponents:
    """Compute the leading Lyapunov exponents of a recurrent module along a sequence.

    The state is all that the module hands on: for an LSTM h and c of each layer. A stack of layers
    has the exponents of its layers, since none acts on the one below. The module is run in
    evaluation mode, and left as it was.

    Args:
        module: what :func:`bptt.unroll` takes: bptt's, torch.nn's, or any differentiable step
            ``(inputs [1, B, ...], state) -> (outputs, state)``, whose sequences are independent.
        inputs: [T, B, ...], or a pytree of such; they say how many steps to take. A few hundred
            steps give two digits, see the errors.
        k: how many; by default 4, or all where there are fewer.
        state: the initial state; None where the module knows how to begin.
        warmup: steps at the start that do not count; a fifth of them by default.
        resets: [T], or [T, B] ([B, T] where the module is ``batch_first``) bool: the state is set
            to zero before step t where it is true. The directions go on as they are: an exponent
            is the mean over the steps of all episodes.
        state_batch_dim: as for :func:`bptt.unroll`.
        batch_first: likewise.

    Raises:
        TypeError: the module does not return outputs and a state whose tensors can be seen.
        ValueError: k or warmup is out of its range; sizes do not fit; the module is bidirectional,
            or no gradient goes through the state that it returns.

    >>> import torch, bptt
    >>> rnn = bptt.init.spectral_radius_(bptt.RNN(1, 50), 0.5)
    >>> found = bptt.lyapunov_exponents(rnn, torch.zeros(200, 1, 1), k=2)
    >>> bool(found.exponents[0] < -0.5)  # contracting: log 0.5 = -0.69 at rest, less elsewhere
    True
    """
    given = Given.of(
        "lyapunov_exponents",
        module,
        inputs,
        state,
        resets=resets,
        state_batch_dim=state_batch_dim,
        batch_first=batch_first,
    )
    _check(k, warmup)
    with following(given) as layers:
        return merge([exponents_of(layer, k, warmup) for layer in layers], k)


def _check(k: object, warmup: object) -> None:
    for name, value in (("k", k), ("warmup", warmup)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"lyapunov_exponents: {name} must be a whole number, got {value!r}")


def exponents_of(
    trajectory: Trajectory, k: int | None = None, warmup: int | None = None
) -> LyapunovExponents:
    """Compute those of one layer; the arguments are those of :func:`lyapunov_exponents`."""
    n, steps = trajectory.size, trajectory.steps - trajectory.first
    wanted = min(4, n) if k is None else k
    if wanted < 1:
        raise ValueError(f"lyapunov_exponents: k must be 1 or more, got {k}")
    wanted = min(wanted, n)  # of a layer; the layers together may have more
    warmup = steps // 5 if warmup is None else warmup
    if not 0 <= warmup < steps:
        raise ValueError(
            f"lyapunov_exponents: warmup must leave at least one of the {steps} steps, got {warmup}"
        )
    logs = _logs(trajectory, wanted)[warmup:]  # [steps, B, k]
    means = torch.cat([block.mean(0) for block in logs.tensor_split(_blocks(len(logs)))])
    errors = (
        means.std(0) / len(means) ** 0.5 if len(means) > 1 else torch.full((wanted,), torch.nan)
    )
    return _sorted(logs.mean((0, 1)), errors, len(logs), warmup)


def _logs(trajectory: Trajectory, k: int) -> Float[Tensor, "time batch k"]:
    """Return log |R_ii| of each step, float64."""
    B, n = trajectory.batch, trajectory.size
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n, k, generator=generator, dtype=torch.float64).to(trajectory.after)
    q = _orthogonal(directions)[0].expand(B, n, k)
    logs = []
    for t in range(trajectory.first, trajectory.steps):
        q, r = _orthogonal(trajectory.at(t).push(q))
        logs.append(r.diagonal(dim1=-2, dim2=-1).abs().double().log())
    return torch.stack(logs)


def _orthogonal(a: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R; halves, which LAPACK does not know, by way of float32."""
    q, r = torch.linalg.qr(a.float() if a.element_size() < 4 else a)
    return q.to(a.dtype), r


def _blocks(steps: int) -> int:
    return max(1, min(BLOCKS, steps // 2))


def _sorted(values: Tensor, errors: Tensor, steps: int, warmup: int) -> LyapunovExponents:
    order = values.argsort(descending=True)
    return LyapunovExponents(values[order], errors[order], steps, warmup)


def merge(layers: list[LyapunovExponents], k: int | None = None) -> LyapunovExponents:
    """Put those of a stack's layers together, the leading k of all.

    Raises:
        ValueError: there are not so many.
    """
    values = torch.cat([layer.exponents for layer in layers])
    errors = torch.cat([layer.errors for layer in layers])
    if k is not None and k > len(values):
        raise ValueError(
            f"lyapunov_exponents: the state has {len(values)} numbers, so there are no more "
            f"exponents than that; got k={k}"
        )
    found = _sorted(values, errors, layers[0].steps, layers[0].warmup)
    k = min(4, len(values)) if k is None else k
    return LyapunovExponents(found.exponents[:k], found.errors[:k], found.steps, found.warmup)
