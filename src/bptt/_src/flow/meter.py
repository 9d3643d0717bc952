"""How far the gradient reaches while a network trains, and an alarm when it explodes or dies."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bptt._src.engines import norm_hooks
from bptt._src.flow.alarm import REMEMBERED, Probe, alarm_of, dies, growth_of
from bptt._src.flow.course import Course
from bptt._src.flow.lags import ByLag, DecayFit, Horizon, find_horizon, fit_decay, mean_ratio
from bptt._src.flow.untouched import untouched
from bptt._src.layout import Layout
from bptt._src.pytree import is_float, leaves_of
from bptt.errors import CheckpointError

if TYPE_CHECKING:
    from bptt._src.flow.flow import GradientFlow

LISTENS_EVERY = 10
"""So many updates lie between those whose backward pass is listened to, at about 1 % of the time of
a small one."""


@dataclass(frozen=True)
class Reading:
    """What the meter shows after an update."""

    update: int
    """How many updates there have been."""
    norm: float
    """The gradient's, over all parameters, before clipping."""
    growth: float | None
    """By what the norm of the state's gradient grew over the earlier half of the window, on its
    way back, in the layer where it grew most, when it was last heard; None where it was not."""
    probe: Probe | None
    """The last look at how far the gradient reaches; None before the first."""
    alarm: str | None
    """What is wrong, in words; None where nothing is."""

    def __str__(self) -> str:
        """Describe it in a line."""
        parts = [f"update {self.update:,}", f"gradient norm {self.norm:.3g}"]
        parts += [str(self.probe)] if self.probe is not None else []
        parts += [f"alarm: {self.alarm}"] if self.alarm is not None else []
        return "  ".join(parts)


class FlowMeter:
    """Watches how far the gradient reaches, in a training loop of one's own.

    It is told of each update, after the backward pass: the gradient's norm, which
    ``clip_grad_norm_`` returns anyway. Every so many updates it looks at the batch itself, at the
    last step that has a loss (:func:`bptt.gradient_flow`), for the horizon, the lag that 99 % of
    the gradient is within, and the decay β, by which the gradient's norm is multiplied for each
    step further back. It changes no buffer of the module, no state of torch's generators and no
    ``grad``, so training goes the same way with it and without.

    It raises an alarm where

    - the gradient's norm is not finite, or 100 times the median of the last 100, or 1/100 of it;
    - the state's gradient grows tenfold on its way back: it explodes. Many a run learns well with
      such gradients, above all if they are clipped. Where :meth:`update` is given the loss, growth,
      and a norm that dies away, are an alarm only as long as the loss has risen by a tenth of what
      was learnt, or has not fallen within 100 updates;
    - 99 % of it is within 2 steps in three looks in a row: it dies. Before a network has learnt
      anything that is usual.

    Args:
        module: the recurrent module, as for :func:`bptt.gradient_flow`.
        every: updates between two looks; 0: never.
        lags: how many lags to look at, from 0 on, where the batch has so many steps.
        threshold: what is left out of the horizon, as a share of the gradient.
        state_batch_dim: where the batch lies in each of the state's tensors, as for
            :func:`bptt.gradient_flow`.
        batch_first: whether inputs are [B, T, ...], likewise.
        clipped: whether the gradient is clipped before each update: a jump of its norm is then an
            alarm only if the loss suffers, where that is known.

    Attributes:
        reading: The last :class:`Reading`; None before the first update.

    Raises:
        ValueError: a number is out of its range.

    >>> import torch, bptt
    >>> rnn, readout = bptt.LSTM(3, 16), torch.nn.Linear(16, 3)
    >>> parameters = [*rnn.parameters(), *readout.parameters()]
    >>> optimizer = torch.optim.SGD(parameters, lr=0.1)
    >>> meter = bptt.FlowMeter(rnn, every=10)
    >>> for batch in torch.randn(20, 31, 8, 3):
    ...     x, target = batch[:-1], batch[1:]
    ...     def losses(y):
    ...         return (readout(y) - target).square().mean(dim=2)  # of each step, [T, B]
    ...     optimizer.zero_grad()
    ...     with meter.listening():  # may be left out
    ...         losses(rnn(x)[0]).mean().backward()
    ...     norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    ...     reading = meter.update(norm, x, losses)
    ...     if reading.alarm:
    ...         print(reading)
    ...     optimizer.step()
    >>> reading.update, reading.probe.update, 2 < reading.probe.horizon.lag < 30
    (20, 20, True)
    """

    def __init__(
        self,
        module: Any,
        every: int = 100,
        *,
        lags: int = 100,
        threshold: float = 0.01,
        state_batch_dim: int | None = None,
        batch_first: bool | None = None,
        clipped: bool = False,
    ) -> None:
        for name, value, least in (("every", every, 0), ("lags", lags, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"FlowMeter: {name} must be an integer from {least} on, got {value!r}"
                )
        if not 0 < threshold < 1:
            raise ValueError(f"FlowMeter: threshold must be between 0 and 1, got {threshold!r}")
        self.module, self.every, self.lags, self.threshold = module, every, lags, threshold
        self.state_batch_dim, self.batch_first = state_batch_dim, batch_first
        self.clipped = clipped
        self.reading: Reading | None = None
        self._updates = 0
        self._has_checked = False  # that the losses depend on their own steps only
        self._norms: deque[float] = deque(maxlen=REMEMBERED)
        self._growth: float | None = None
        self._probe: Probe | None = None
        self._dying = 0  # looks in a row at which it died
        self._course = Course()

    @property
    def is_due(self) -> bool:
        """Whether the next update is one at which it looks at the batch."""
        return self.every > 0 and (self._updates + 1) % self.every == 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear, within a ``with`` block, what the kernels report of the state's gradient.

        That is so for :class:`bptt.RNN`, :class:`bptt.GRU` and :class:`bptt.LSTM` on the processor;
        of other modules nothing is heard. It listens to the first update and every tenth after it,
        so that an explosion is seen within ten updates and not only when it looks at the batch.
        """
        if self._updates % LISTENS_EVERY:
            yield
            return
        with norm_hooks.listen() as heard:
            yield
        self._growth = growth_of(heard)

    def update(
        self,
        norm: float | Tensor | None = None,
        inputs: Any = None,
        loss_fn: Callable[[Any], Tensor] | None = None,
        state: Any = None,
        resets: Tensor | None = None,
        *,
        loss: float | Tensor | None = None,
    ) -> Reading:
        """Take note of an update, after the backward pass.

        Args:
            norm: the gradient's norm before clipping, what ``clip_grad_norm_`` returns; None: it
                is that of the module's parameters, as they are now.
            inputs: of the batch, to look at if it is time to; None: it is not looked at.
            loss_fn: ``outputs -> losses`` of each step, [T, B] or [T], or the loss of a
                single step, a scalar or [B], as for :func:`bptt.gradient_flow`; None: in a fixed
                direction for each step.
            state: the state before the batch.
            resets: [T], or [T, B] ([B, T] where the module is ``batch_first``) bool: where the
                state is set to zero before a step.
            loss: of the batch, a number. Where it is given, a gradient that explodes or dies away
                is an alarm only as long as the loss has risen, or does not fall.

        Returns:
            What there is to see. An alarm is in it as long as its reason lasts.

        Raises:
            TypeError: the norm is no number, or the module does not return outputs and a state
                whose tensors can be seen.
            ValueError: no parameter has a gradient, and no norm was given; something of a batch
                was given without its inputs; or as for :func:`bptt.gradient_flow`.
        """
        value = _norm_of(self.module) if norm is None else _number(norm)
        if inputs is None and any(v is not None for v in (loss_fn, state, resets)):
            raise ValueError(
                "FlowMeter.update: loss_fn, state and resets belong to a batch; give its inputs too"
            )
        is_due = self.is_due
        self._updates += 1
        if is_due and inputs is not None:
            self.look(inputs, loss_fn, state, resets)
        if loss is not None:
            self._course.add(float(loss))
        alarm = alarm_of(
            value,
            self._norms,
            self._growth,
            self._probe,
            self._dying,
            None if loss is None else self._course,
            self.clipped,
        )
        if math.isfinite(value):
            self._norms.append(value)
        self.reading = Reading(self._updates, value, self._growth, self._probe, alarm)
        return self.reading

    def look(
        self,
        inputs: Any,
        loss_fn: Callable[[Any], Tensor] | None = None,
        state: Any = None,
        resets: Tensor | None = None,
    ) -> Probe:
        """Look now, how far the gradient of the last step's loss reaches; see :meth:`update`.

        Where the last steps have no loss, it is the last one that has. The module is looked at in
        evaluation mode, so without dropout.
        """
        with untouched(self.module, evaluating=True):
            last = self._layout(inputs).steps - 1
            flow = self._flow(last, inputs, loss_fn, state, resets)
            if loss_fn is not None and last > 0 and _is_zero(flow):
                t = self._last_loss(inputs, loss_fn, state, resets)
                flow = flow if t is None else self._flow(t, inputs, loss_fn, state, resets)
        self._has_checked = True
        # As flow.by_lag, without its quantiles, which take longer than all the rest.
        (t,) = flow.times
        norms = flow.of_each()[:, 0, : t + 1].flip(1)[:, : flow.lags].cpu().numpy()
        norms[:, 1:] = np.where(np.isnan(norms[:, 1:]), math.inf, norms[:, 1:])  # not finite
        if resets is not None:
            by_time = cast(Tensor, self._layout(inputs).by_time("resets", resets, "FlowMeter"))
            norms = own_lags(norms, by_time[: t + 1].flip(0).cpu().numpy())
        count = np.maximum(1, (~np.isnan(norms)).sum(0))
        mean, ratio = np.nansum(norms, 0) / count, np.full(norms.shape[1], np.nan)
        mean[np.isnan(norms).all(0)] = np.nan
        ratio[1:] = mean_ratio(norms[:, 1:], norms[:, :-1])
        lags = np.arange(len(mean))
        by_lag = ByLag(lags, mean, mean, mean, count, ratio)
        decay = fit_decay(by_lag)
        growth = math.inf
        if np.isfinite(mean[1:]).all():
            growth = float(mean[1:].max() / mean[1]) if len(mean) > 2 and mean[1] > 0 else 0.0
        horizon = find_horizon(by_lag, decay, self.threshold)
        known = np.where(np.isnan(mean) & (lags == 0), 0, mean)
        self._probe = Probe(self._updates, horizon, decay, growth, tuple(known.tolist()))
        self._dying = self._dying + 1 if dies(self._probe) else 0
        return self._probe

    def _layout(self, inputs: Any) -> Layout:
        options = (self.batch_first, self.state_batch_dim)
        return Layout.of(self.module, inputs, *options, where="FlowMeter")

    def _flow(self, t: int, inputs: Any, loss_fn: Any, state: Any, resets: Any) -> GradientFlow:
        from bptt._src.flow.gradient_flow import gradient_flow

        return gradient_flow(
            self.module,
            inputs,
            loss_fn,
            state,
            times=[t],
            lags=self.lags,
            attribution=False,
            dynamics=False,
            resets=resets,
            state_batch_dim=self.state_batch_dim,
            batch_first=self.batch_first,
            check=not self._has_checked,
        )

    def _last_loss(self, inputs: Any, loss_fn: Any, state: Any, resets: Any) -> int | None:
        """The last step whose loss has a gradient."""
        last: list[int] = []

        def noting(outputs: Any) -> Tensor:
            losses: Tensor = loss_fn(outputs)
            tensors = [y for y in leaves_of(outputs) if is_float(y)]
            for t in reversed(range(len(losses) if losses.dim() else 0)):
                found = torch.autograd.grad(
                    losses[t].sum(), tensors, retain_graph=True, allow_unused=True
                )
                if any(g is not None and bool(g.any()) for g in found):
                    last.append(t)
                    break
            return losses

        self._flow(self._layout(inputs).steps - 1, inputs, noting, state, resets)
        return last[0] if last else None

    def state_dict(self) -> dict[str, Any]:
        """Return all that it remembers, as values that JSON can hold."""
        probe = self._probe
        return {
            "updates": self._updates,
            "norms": list(self._norms),
            "growth": self._growth,
            "dying": self._dying,
            "course": self._course.state_dict(),
            "probe": None
            if probe is None
            else {
                **probe._asdict(),
                "horizon": list(probe.horizon),
                "decay": None if probe.decay is None else list(probe.decay),
                "by_lag": list(probe.by_lag),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            updates, norms = int(state["updates"]), [float(n) for n in state["norms"]]
            growth = None if state["growth"] is None else float(state["growth"])
            dying = int(state.get("dying", 0))
            course = Course()
            if "course" in state:  # not in those of earlier versions
                course.load_state_dict(state["course"])
            probe = None
            if (found := state["probe"]) is not None:
                decay = None if found["decay"] is None else DecayFit(*found["decay"])
                horizon, by_lag = Horizon(*found["horizon"]), tuple(found["by_lag"])
                probe = Probe(**{**found, "horizon": horizon, "decay": decay, "by_lag": by_lag})
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"the saved state of a FlowMeter is damaged: {e!r}") from None
        self._updates, self._growth, self._probe, self._dying = updates, growth, probe, dying
        self._norms, self._course = deque(norms, maxlen=REMEMBERED), course


def own_lags(norms: NDArray[np.float64], resets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Leave out the lags that a loss does not have, since its sequence begins after them.

    Args:
        norms: ‖∂L_t/∂state_{t-k}‖, [B, lags].
        resets: from the last step back, [T] or [T, B].

    Returns:
        The norms, NaN where there is no such lag; without the lags that no loss has.
    """
    begun = resets.reshape(len(resets), -1)[: norms.shape[1]].cumsum(0).astype(bool).T  # [B, lags]
    there = np.ones_like(norms, dtype=bool)
    there[:, 1:] = ~begun[:, : norms.shape[1] - 1]
    return np.where(there, norms, np.nan)[:, there.any(0)]


def _norm_of(module: Any) -> float:
    parameters = module.parameters() if isinstance(module, nn.Module) else []
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError(
            "FlowMeter.update: no parameter of the module has a gradient; call it after the "
            "backward pass, or give the norm that clip_grad_norm_ returned"
        )
    return float(
        nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients])
    )


def _number(norm: Any) -> float:
    is_number = isinstance(norm, float | int) and not isinstance(norm, bool)
    if not is_number and not (isinstance(norm, Tensor) and norm.numel() == 1):
        raise TypeError(f"FlowMeter.update: expected the gradient's norm, a number, got {norm!r}")
    return float(norm)


def _is_zero(flow: GradientFlow) -> bool:
    """Whether its losses have no gradient at all."""
    return not any(bool(s.norms.nan_to_num(0, 1, 1).any()) for s in flow.states)
