"""The leaky integrate-and-fire neuron: one step, with a surrogate gradient.

    v_t = β v_{t-1} + W_ih x_t + b_ih + W_hh s_{t-1} + b_hh - ϑ s_{t-1}       membrane potential
    s_t = 1 where v_t > ϑ, else 0                                             spike

The last term of v_t resets it after a spike, by subtraction; no gradient goes back through that
term. In the place of the derivative of s_t, which is zero or infinite, stands that of a fast
sigmoid of slope k,

    ∂s_t/∂v_t = 1 / (1 + k |v_t - ϑ|)²

E. O. Neftci, H. Mostafa and F. Zenke, "Surrogate gradient learning in spiking neural networks",
IEEE Signal Processing Magazine 36 (2019); the surrogate is that of F. Zenke and S. Ganguli,
"SuperSpike: supervised learning in multilayer spiking neural networks", Neural Computation 30
(2018). The states are s and v: the spikes are the output.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from bptt.cells.cell import Cell, Leak
from bptt.cells.weights import Blocks, State


def spike(above: Tensor, slope: float) -> Tensor:
    """Return 1 where a tensor is positive, else 0; its derivative is that of a fast sigmoid."""
    smooth = above / (1 + slope * above.abs())
    return (above > 0).to(above.dtype) + (smooth - smooth.detach())  # exactly 0 is added


def equations(
    x: Blocks,
    h: Blocks,
    state: State,
    units: Blocks,
    beta: float = 0.9,
    threshold: float = 1.0,
    slope: float = 10.0,
) -> State:
    """Compute s_t and v_t; as :attr:`bptt.Cell.equations`, with the constants of make_lif."""
    s, v = state
    v = beta * v + (x[0] + h[0]) - threshold * s.detach()
    return spike(v - threshold, slope), v


def mean(before: State, after: State, p: float, threshold: float, slope: float) -> State:
    """Return the mean of v of two states, and its spike; as :attr:`bptt.Cell.mean`."""
    v = p * before[1] + (1 - p) * after[1]
    return spike(v - threshold, slope), v


LONGER = (
    "a larger beta, which is 1 - alpha, reaches further: bptt.cells.make_lif(beta=1 - 1 / L) for a "
    "lag of L steps"
)


def make_lif(beta: float = 0.9, threshold: float = 1.0, slope: float = 10.0) -> Cell:
    """Make a spiking neuron's cell; :data:`bptt.cells.LIF` is that of the defaults.

    Its gradient is a surrogate: finite differences do not apply to it.

    Args:
        beta: β, the share of the membrane potential that is left after a step.
        threshold: ϑ, above which a neuron spikes.
        slope: k of the surrogate; the larger, the fewer neurons a gradient goes through.

    Raises:
        ValueError: beta is not between 0 and 1, or the threshold or slope is not positive.

    >>> import torch, bptt
    >>> network = bptt.Recurrent(bptt.cells.make_lif(beta=0.8), 3, 5)
    >>> spikes, (last_spikes, potentials) = network(3 * torch.randn(7, 2, 3))
    >>> spikes.unique()
    tensor([0., 1.], grad_fn=<Unique2Backward0>)
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"bptt.cells.make_lif: beta must be from 0 to 1, got {beta}")
    for name, value in (("threshold", threshold), ("slope", slope)):
        if not value > 0:
            raise ValueError(f"bptt.cells.make_lif: {name} must be above 0, got {value}")
    return Cell(
        "LIF",
        1,
        1,
        partial(equations, beta=beta, threshold=threshold, slope=slope),
        states=2,
        tied=(0, 1),
        leak=Leak(1 - beta, longer=LONGER, is_average=False) if beta < 1 else None,
        mean=partial(mean, threshold=threshold, slope=slope),
    )


LIF = make_lif()
