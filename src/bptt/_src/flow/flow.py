"""What is known of a gradient's way back: how strongly each loss reaches each earlier step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bptt._src.flow.lags import ByLag, DecayFit, Horizon, by_lag, find_horizon, fit_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bptt._src.flow.advice import Advice
    from bptt._src.flow.dynamics import Dynamics
    from bptt._src.flow.truncation import Suggestion
    from bptt._src.flow.truncation_bias import TruncationBias
    from bptt._src.flow.verdict import Verdict
    from bptt.cells import Cell


@dataclass(frozen=True, eq=False)
class StateFlow:
    """The norms of one tensor of the state, in one layer."""

    layer: int
    """From 0 on, the lowest first."""
    name: str
    """``"hidden"``, ``"cell"``, or the tensor's place in a state of another form."""
    norms: Float[Tensor, "batch losses time"]
    """‖∂L_t/∂state_s‖ for each sequence, [B, N, T] float64: see :class:`GradientFlow`."""


@dataclass(frozen=True, eq=False, repr=False)
class GradientFlow:
    """How strongly each loss reaches each earlier step, as :func:`bptt.gradient_flow` finds it.

    L_t is the loss of step t, state_s the state that step s leaves; both count from 0. For s < t
    a norm is that of the derivative with respect to the state as it enters step s + 1, the
    state's other tensors held fixed; so an LSTM's hidden state and cell are told apart. At
    s = t it is what comes through the output: ∂L_t/∂y_t for the hidden state of the top layer,
    for those below what comes down through the layers above. It is NaN there for a cell, and
    for a module of which it is not known how its output depends on its state. It is 0 for
    s > t, and NaN beyond the lags that were followed.
    """

    name: str
    """What to call it in a report."""
    module: str
    """The module, in words."""
    times: tuple[int, ...]
    """The N steps whose losses were followed."""
    steps: int
    """T."""
    batch: int
    """B."""
    lags: int
    """How many lags were followed, from 0 on; T at most."""
    states: tuple[StateFlow, ...]
    """The norms of each tensor of the state, layer by layer."""
    losses: Float[Tensor, "losses batch"]
    """L_t of each sequence, [N, B] float64; where the loss function gives one value for all
    sequences, that."""
    attribution: Float[Tensor, "batch losses time"] | None = None
    """Σ_i ∂L_t/∂x_{s,i} · x_{s,i}, signed, [B, N, T] float64; None where the inputs are not
    floating-point numbers."""
    tokens: tuple[str, ...] | None = None
    """What is fed in at each step, [T], of the first sequence."""
    targets: tuple[str, ...] | None = None
    """What is to be predicted at each step, [T], of the first sequence."""
    dynamics: tuple[Dynamics, ...] | None = None
    """The layers' Jacobians, weights and activity; None where they were not measured."""
    excerpt: bool = False
    """Whether the sequences are cut out of longer ones, whose losses have more lags."""
    kinds: tuple[Cell, ...] = ()
    """The recurrent cells that were found in the module."""
    gradient_norm: float | None = None
    """What the gradient's norm, over all parameters and before clipping, usually is in training;
    None where that is not known."""
    window: int | None = None
    """The steps after which training makes an update, where that is fixed."""
    bias_of: TruncationBias | None = None
    """Measures the bias of a truncation on these sequences; it refers to the module and its
    inputs. None: that cannot be measured any more."""
    _suggestions: dict[tuple[float, int | None], Suggestion] = field(
        default_factory=dict, init=False
    )

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of those, without their nonlinearity: ``"RNN"``, ``"GRU"``, ``"LSTM"``..."""
        return tuple(dict.fromkeys(cell.kind for cell in self.kinds))

    def __repr__(self) -> str:
        """Describe the network and how far the gradient reaches, in one line."""
        horizon, decay = self.horizon(), self.decay
        reach = "none" if horizon is None else f"{'' if self.settles() else '≥ '}{horizon}"
        return (
            f"GradientFlow({self.name!r}: {_many(len(self.times), 'loss', 'losses')}, "
            f"{_many(self.lags, 'lag', 'lags')}, {_many(self.batch, 'sequence', 'sequences')}; "
            f"horizon {reach}"
            f"{'' if decay is None else f', decay {decay.beta:.3g} a step'})"
        )

    def __str__(self) -> str:
        """Return the report of :meth:`to_text`."""
        return self.to_text()

    def of(
        self, *, layer: int | None = None, name: str | None = None, sequence: int | None = None
    ) -> Float[Tensor, "losses time"]:
        """Pick norms, [N, T].

        Args:
            layer: of one layer; of all taken together by default.
            name: of one of the state's tensors; of all of the state taken together by default.
            sequence: of one sequence; the mean over all of them by default.

        Raises:
            ValueError: there is none such.
        """
        norms = self.of_each(layer, name)
        if sequence is None:
            return norms.mean(0)
        if not -self.batch <= sequence < self.batch:
            raise ValueError(f"there are {self.batch} sequences, got sequence={sequence}")
        return norms[sequence]

    def of_each(
        self, layer: int | None = None, name: str | None = None
    ) -> Float[Tensor, "batch losses time"]:
        """Pick norms of each sequence, [B, N, T], as :meth:`of`."""
        chosen = [
            s.norms for s in self.states if layer in (None, s.layer) and name in (None, s.name)
        ]
        if not chosen:
            there = ", ".join(f"{s.name} of layer {s.layer}" for s in self.states)
            raise ValueError(f"no state is {name!r} of layer {layer}; there are: {there}")
        return chosen[0] if len(chosen) == 1 else self._together(chosen)

    def _together(self, norms: list[Tensor]) -> Float[Tensor, "batch losses time"]:
        """Take several tensors of the state together.

        What is not defined at lag 0, as of a cell, adds nothing to what is.
        """
        each = torch.stack(norms)
        own = torch.tensor(self.times).unsqueeze(1) == torch.arange(self.steps)
        undefined = each.isnan() & own.to(each.device)
        total = each.masked_fill(undefined, 0).square().sum(0).sqrt()
        return total.masked_fill(undefined.all(0), torch.nan)

    @property
    def norms(self) -> Float[Tensor, "losses time"]:
        """‖∂L_t/∂state_s‖, [N, T]: of all of the state together, the mean over the batch."""
        return self.of()

    @cached_property
    def by_lag(self) -> ByLag:
        """The same by lag k = t - s, with its spread over losses and sequences."""
        norms = self.of_each().cpu().numpy().astype(np.float64)
        return by_lag(norms, np.array(self.times, np.int64), self.lags)

    @cached_property
    def decay(self) -> DecayFit | None:
        """The factor by which the norm changes with each step further back; None: too few lags."""
        return fit_decay(self.by_lag)

    def horizon(self, threshold: float = 0.01) -> int | None:
        """Return the least lag within which all but a threshold of the gradient lies.

        It is the least K whose Σ_{k≤K} of the mean norms is 1 - threshold of the sum over all lags
        that were followed. Whether these settle it, :meth:`settles` says. None where the norms
        are not finite, or all zero.

        Raises:
            ValueError: the threshold is not between 0 and 1.
        """
        return self._horizon(threshold).lag

    def settles(self, threshold: float = 0.01) -> bool:
        """Whether the lags followed settle the horizon: False where the gradient goes beyond."""
        return self._horizon(threshold).reached

    def _horizon(self, threshold: float) -> Horizon:
        return find_horizon(self.by_lag, self.decay, threshold)

    def suggest_truncation(self, bias: float = 0.1, every: int | None = None) -> int | None:
        """Suggest how far back to credit losses: the ``reach`` of :meth:`suggestion`.

        Args:
            bias: the relative bias of the gradient that is tolerated, above 0 and below 1.
            every: the steps after which an update is made, where that is fixed.

        Returns:
            K, in steps, for ``Truncated(every=K, reach=2 * K)``, or with ``every``
            ``Truncated(every=every, reach=every + K)``. None where the lags that were followed do
            not tell.
        """
        return self.suggestion(bias, every).reach

    def suggestion(self, bias: float = 0.1, every: int | None = None) -> Suggestion:
        """Suggest how far back to credit losses, with the bias that was measured there.

        See :func:`flow.truncation.suggest`. It is measured once for each ``bias`` and
        ``every``.
        """
        from bptt._src.flow.truncation import suggest

        if (bias, every) not in self._suggestions:
            self._suggestions[bias, every] = suggest(self, bias, every)
        return self._suggestions[bias, every]

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the gradient vanishes, explodes or is healthy: a kind, and why in words."""
        from bptt._src.flow.verdict import judge

        return judge(self)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What to do about it: sentences, the figures that led to them, and their sources."""
        from bptt._src.flow.advice import advise

        return advise(self)

    def figure(self, *others: GradientFlow) -> Figure:
        """Draw it: a figure of matplotlib's, unknown to pyplot, so nothing has to be closed.

        Args:
            others: flows to draw below this one, and beside it in the plot by lag.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from bptt._src.report.flow import draw_flow

        return draw_flow(self, *others)

    def to_text(self, *others: GradientFlow) -> str:
        """Return the report that ``bptt flow`` and ``print(flow)`` print: figures, verdict, advice.

        For the report, the bias of the suggested truncation is measured, as by :meth:`suggestion`.

        Args:
            others: further flows for the same report.
        """
        from bptt._src.flow.text import as_text

        return as_text([self, *others])

    def save_html(self, path: str | Path, *others: GradientFlow) -> None:
        """Write a page to look at, one file that needs no network.

        Args:
            path: where to write it.
            others: flows to show beside this one.
        """
        from bptt._src.report.flow_page import write

        write(path, self, *others)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON: finite numbers or null, norms to five digits."""
        return {
            "format": "bptt.flow",
            "version": 2,
            "name": self.name,
            "module": self.module,
            "steps": self.steps,
            "times": list(self.times),
            "batch": self.batch,
            "lags": self.lags,
            "excerpt": self.excerpt,
            "tokens": None if self.tokens is None else list(self.tokens),
            "targets": None if self.targets is None else list(self.targets),
            "losses": _numbers(self.losses.mean(1).tolist()),
            "states": [
                {"layer": s.layer, "name": s.name, "norms": self._rows(s.norms)}
                for s in self.states
            ],
            "attribution": None if self.attribution is None else self._rows(self.attribution),
            **self._summary(),
        }

    def _summary(self) -> dict[str, Any]:
        found, decay, horizon = self.by_lag, self.decay, self._horizon(0.01)
        verdict, suggestion = self.verdict, self.suggestion(every=self.window)
        return {
            "by_lag": {
                "lag": found.lag.tolist(),
                **{n: _numbers(getattr(found, n).tolist()) for n in ("mean", "low", "high")},
            },
            "decay": None if decay is None else {k: _number(v) for k, v in decay._asdict().items()},
            "horizon": horizon._asdict(),
            "suggested_reach": {k: _number_or_text(v) for k, v in suggestion._asdict().items()},
            "dynamics": None if self.dynamics is None else [d.to_dict() for d in self.dynamics],
            "verdict": {"kind": verdict.kind, "words": verdict.words},
            "advice": [
                {
                    "text": a.text,
                    "figures": {k: _number(v) for k, v in a.figures.items()},
                    "source": a.source,
                }
                for a in self.advice
            ],
        }

    def _rows(self, values: Float[Tensor, "batch losses time"]) -> list[list[float | None]]:
        """The mean over the batch, row by row; null where there is no step, or no value."""
        rows = values.mean(0).tolist()
        return [
            [*_numbers(row[: t + 1]), *(None,) * (len(row) - t - 1)]
            for t, row in zip(self.times, rows, strict=True)
        ]


def _many(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(v) for v in values]


def _number_or_text(v: float | int | str | None) -> float | int | str | None:
    return v if isinstance(v, str) else _number(v)


def _number(v: float | int | None) -> float | int | None:
    """Five digits of a number, as JSON can hold it: None where it is not finite."""
    if v is None or isinstance(v, int):
        return v
    return float(f"{v:.5g}") if math.isfinite(v) else None
