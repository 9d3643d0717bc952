"""How far an estimator's gradient is from the exact one: bias, variance, direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.credit.full import Full
from bptt._src.credit.spelling import as_credit
from bptt._src.layout import Layout
from bptt._src.pytree import map_tensors
from bptt._src.unroll.buffers import Buffers, modules_in
from bptt._src.unroll.unroll import unroll
from bptt.errors import ConfigError, ZeroGradientError


@dataclass(frozen=True)
class GradientError:
    """The error of a gradient estimate ĝ against the exact g, for one parameter or all together."""

    bias: float
    """‖E ĝ - g‖ / ‖g‖; estimated from draws, so it includes the noise of their mean."""
    bias_noise: float
    """The standard error of the mean of the draws, relative to ‖g‖; 0 without draws."""
    variance: float
    """E ‖ĝ - E ĝ‖² / ‖g‖²; 0 without draws."""
    cosine: float
    """E cos(ĝ, g), the mean over single estimates."""
    norm: float
    """‖g‖."""


@dataclass(frozen=True)
class EstimatorError:
    """The result of :func:`bptt.estimator_error`. Printed, it is a table."""

    credit: Any
    draws: int
    """The number of estimates drawn; 1 if the credit is not random."""
    total: GradientError
    """The error of all parameters taken together."""
    parameters: dict[str, GradientError]
    """The error of each parameter, by name."""

    def __str__(self) -> str:
        """Format a table with one line for all parameters together, and one for each."""
        width = max(map(len, ["all parameters", *self.parameters]))
        lines = [
            f"{self.credit!r}, {self.draws} draw{'s' if self.draws > 1 else ''}",
            f"{'':{width}}  {'bias':>9} {'± noise':>9} {'variance':>9} {'cosine':>8} {'norm':>9}",
        ]
        for name, e in {"all parameters": self.total, **self.parameters}.items():
            lines.append(
                f"{name:{width}}  {e.bias:9.3g} {e.bias_noise:9.2g} {e.variance:9.3g} "
                f"{e.cosine:8.4f} {e.norm:9.3g}"
            )
        return "\n".join(lines)


def estimator_error(
    module: Any,
    inputs: Any,
    loss_fn: Callable[[Any], Tensor],
    credit: Any,
    *,
    state: Any = None,
    draws: int = 100,
    generator: torch.Generator | None = None,
    parameters: dict[str, Tensor] | None = None,
    **options: Any,
) -> EstimatorError:
    """Measure the bias and variance of a credit's gradient against the exact one.

    Args:
        module: a module as for :func:`bptt.unroll`.
        inputs: [T, B, ...], or a pytree of such.
        loss_fn: ``outputs -> scalar``.
        credit: the estimator.
        state: the initial state; None if the module makes its own. No gradient is computed
            for it.
        draws: the number of estimates to draw, at least 2; a credit whose plans do not vary is
            not drawn again.
        generator: the generator for the plans; by default one seeded by torch's own. Dropout drops
            the same units in every pass, and the module's buffers are left unchanged.
        parameters: the parameters to measure, by name; by default the module's own.
        options: further options of :func:`bptt.unroll`: ``memory``, ``resets``, ``per_sequence``...

    Raises:
        ConfigError: there is no parameter to measure, the gradient is zero, or draws < 2.

    >>> import torch, bptt
    >>> gru, x = bptt.GRU(3, 8), torch.randn(50, 4, 3)
    >>> error = bptt.estimator_error(gru, x, lambda y: y[-1].sum(), bptt.Truncated(10))
    >>> error.draws, error.total.bias > 0, error.total.variance
    (1, True, 0.0)
    """
    if draws < 2:
        raise ConfigError(f"estimator_error needs at least 2 draws, got {draws}")
    named = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    wanted = {k: p for k, p in (parameters or named).items() if p.requires_grad}
    if not wanted:
        raise ConfigError(
            "estimator_error finds no parameter that requires a gradient; pass them by name: "
            "parameters={'w': w}"
        )
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    credit = as_credit(credit)
    where = {k: options.get(k) for k in ("batch_first", "state_batch_dim")}
    buffers = Buffers(modules_in(module))
    layout = Layout.of(module, inputs, **where, where="estimator_error")
    state = map_tensors(torch.Tensor.detach, state)
    devices = sorted({p.device.index or 0 for p in wanted.values() if p.device.type == "cuda"})

    def gradient(of: Any) -> list[Tensor]:
        with torch.random.fork_rng(devices), torch.enable_grad(), buffers.aside():
            y, _ = unroll(module, inputs, state, credit=of, generator=generator, **options)
            loss = loss_fn(y)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ConfigError(
                    f"estimator_error: loss_fn must return a scalar, got {got}; sum it, or take "
                    "the mean"
                )
            found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        pairs = zip(found, wanted.values(), strict=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]
        return [g.double().flatten() for g in dense]

    exact = gradient(Full())
    sums = [_Sums(g) for g in (torch.cat(exact), *exact)]
    count = 1 if _draws_nothing(credit, layout.steps, generator) else draws
    for _ in range(count):
        estimate = gradient(credit)
        for s, g in zip(sums, (torch.cat(estimate), *estimate), strict=True):
            s.add(g)
    total, *each = (s.error(count) for s in sums)
    if total.norm == 0:
        raise ZeroGradientError("the exact gradient is zero: there is nothing to compare with")
    return EstimatorError(credit, count, total, dict(zip(wanted, each, strict=True)))


def _draws_nothing(credit: Any, steps: int, generator: torch.Generator) -> bool:
    """Whether two consecutive plans are the same, and made without the generator."""
    before = generator.get_state()
    one, other = (credit.plan(steps, 1, generator) for _ in range(2))
    same = one.blocks == other.blocks and bool((one.carry == other.carry).all())
    return same and torch.equal(before, generator.get_state())


class _Sums:
    """Sums over estimates of one gradient, from which its error follows."""

    def __init__(self, exact: Tensor) -> None:
        self.exact, self.norm = exact, float(exact.norm())
        self.mean = torch.zeros_like(exact)
        self.square, self.cosine, self.count = 0.0, 0.0, 0

    def add(self, g: Tensor) -> None:
        """Add an estimate (B. Welford, Technometrics 4, 1962)."""
        self.count += 1
        off = g - self.mean
        self.mean += off / self.count
        self.square += float(off @ (g - self.mean))
        self.cosine += float(nn.functional.cosine_similarity(g, self.exact, dim=0))

    def error(self, n: int) -> GradientError:
        """Return the errors relative to the exact gradient; NaN if that is zero."""
        if self.norm == 0:
            return GradientError(*(4 * (float("nan"),)), norm=0.0)
        variance = max(0.0, self.square) / max(1, n - 1) / self.norm**2
        return GradientError(
            bias=float((self.mean - self.exact).norm()) / self.norm,
            bias_noise=(variance / n) ** 0.5,
            variance=variance,
            cosine=self.cosine / n,
            norm=self.norm,
        )
