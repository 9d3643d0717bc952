"""Your own credit: a class with one method, ``plan``, that everything accepts.

python examples/own_credit.py
cd examples; bptt compare --task copy --credit full own_credit.Fading:0.9
"""

from dataclasses import dataclass

import numpy as np
import torch

import bptt


@dataclass(frozen=True, repr=False)
class Fading(bptt.Credit):
    """Credit that fades by a factor with each step back: W[t, s] = rate^(t-s)."""

    rate: float

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=np.full(steps, self.rate))


if __name__ == "__main__":
    print(Fading(0.5).plan(4))
    torch.manual_seed(0)
    gru, x = bptt.GRU(3, 16), torch.randn(60, 8, 3)
    y, _ = gru(x, credit=Fading(0.9))
    y[-1].sum().backward()
    for credit in (Fading(0.9), bptt.Truncated(10), bptt.Randomized(10)):
        gru.zero_grad()
        print(bptt.estimator_error(gru, x, lambda y: y.square().mean(), credit).total)
