"""Flows made by hand: norms by a rule."""

from __future__ import annotations

import torch

from bptt.flow import GradientFlow, StateFlow


def flow_of(rule, steps=30, batch=2, lags=None, names=("hidden",), dynamics=None, times=None):
    """A flow whose norm of L_t at step s is ``rule(t, t - s, b)``; a cell has none at lag 0."""
    lags = steps if lags is None else lags
    times = tuple(range(steps)) if times is None else times
    states = []
    for name in names:
        norms = torch.zeros(batch, len(times), steps, dtype=torch.float64)
        for n, t in enumerate(times):
            for s in range(t + 1):
                for b in range(batch):
                    k = t - s
                    undefined = k >= lags or (name != "hidden" and k == 0)
                    norms[b, n, s] = float("nan") if undefined else rule(t, k, b)
        states.append(StateFlow(0, name, norms))
    return GradientFlow(
        name="made",
        module="made",
        times=times,
        steps=steps,
        batch=batch,
        lags=lags,
        states=tuple(states),
        losses=torch.ones(len(times), batch, dtype=torch.float64),
        dynamics=dynamics,
    )
