"""Initial weights with which a recurrent network's gradient reaches further back.

Each function changes the recurrent layers of a module in place and returns the module: those of
bptt and of torch.nn, their single-step cells (``torch.nn.LSTMCell``...), and any module that has
such layers inside. All layers are changed, and both directions. What is not named stays as it is.

>>> import torch, bptt
>>> lstm = bptt.init.chrono_(bptt.LSTM(8, 32), longest=100)
>>> rnn = bptt.init.identity_(torch.nn.RNN(8, 32, nonlinearity="relu"))
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import nn

from bptt._src.cell_of import cell_of
from bptt._src.initialised import LayerWeights, layers_for
from bptt.cells import Cell, Weights
from bptt.cells.lru import on_a_ring
from bptt.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


def orthogonal_(module: M, gain: float = 1.0, *, generator: torch.Generator | None = None) -> M:
    """Make the recurrent weights orthogonal, each gate's block by itself.

    An orthogonal matrix keeps the length of what it multiplies, so a gradient that crosses W_hh
    any number of times neither grows nor shrinks by it; what φ' takes away remains. A. Saxe,
    J. McClelland and S. Ganguli, arXiv:1312.6120 (2014); for recurrent networks: M. Henaff,
    A. Szlam and Y. LeCun, arXiv:1602.06662 (2016). A block that is not square, as with
    ``proj_size``, gets orthonormal rows or columns.

    Args:
        module: a recurrent module, or one that has such inside.
        gain: what the orthogonal matrix is multiplied by: the singular values of each block.
        generator: draws it; torch's own by default.

    Raises:
        TypeError: there is no recurrent layer in the module, or one without a recurrent matrix, or
            its weights are parametrized: of an orthogonal matrix, Dale's law would keep only the
            magnitudes.
        ConfigError: the gain is not a finite number.

    >>> import torch, bptt
    >>> rnn = bptt.init.orthogonal_(bptt.RNN(3, 8))
    >>> W = rnn.weight_hh_l0
    >>> torch.allclose(W @ W.T, torch.eye(8), atol=1e-5)
    True
    """
    if not math.isfinite(gain):
        raise ConfigError(f"bptt.init.orthogonal_: gain must be a finite number, got {gain}")
    with torch.no_grad():
        for layer in layers_for(module, "orthogonal_"):
            for block in layer.blocks:
                # Halves, which LAPACK does not know, by way of float32.
                wide = torch.promote_types(block.dtype, torch.float32)
                drawn = torch.empty_like(block, dtype=wide)
                block.copy_(nn.init.orthogonal_(drawn, gain, generator=generator))
    return module


def identity_(module: M, scale: float = 1.0) -> M:
    """Set the recurrent weights to the identity and the biases to zero, for a network of ReLUs.

    Q. V. Le, N. Jaitly and G. E. Hinton, arXiv:1504.00941 (2015): with ReLU and W_hh = I a unit
    that is active hands its state, and its gradient, on unchanged. They draw the input weights
    from a normal distribution of standard deviation 0.001, and take a scale of 0.01 where no long
    memory is wanted; the input weights stay as they are here. With tanh the gradient is only
    kept while the state is small; with sigmoid a quarter of it passes at most.

    Of a rate network it does the same: a unit that is active gives itself what its leak takes,
    (1 - α) x + α φ(x) = x for φ(x) = x.

    Args:
        module: a :class:`bptt.RNN` or :class:`torch.nn.RNN`, a :class:`bptt.Recurrent` of
            :data:`bptt.cells.RATE`, or a module that has such inside.
        scale: of the identity matrix.

    Raises:
        TypeError: there is no recurrent layer in the module, or one with gates, or its weights are
            parametrized.
        ConfigError: the scale is not a finite number.

    >>> import bptt
    >>> rnn = bptt.init.identity_(bptt.RNN(3, 2, nonlinearity="relu"))
    >>> rnn.weight_hh_l0.tolist(), rnn.bias_hh_l0.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    """
    if not math.isfinite(scale):
        raise ConfigError(f"bptt.init.identity_: scale must be a finite number, got {scale}")
    with torch.no_grad():
        for layer in layers_for(module, "identity_"):
            nn.init.eye_(layer.hh.detach()).mul_(scale)
            if layer.b_ih is not None:
                layer.set_bias(0, 0.0)
    return module


def chrono_(module: M, longest: float, *, generator: torch.Generator | None = None) -> M:
    """Spread the units' memory over time scales up to the longest dependency: chrono.

    C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018,
    arXiv:1804.11188. A gate that lets a share f of the state pass at each step forgets in about
    1 / (1 - f) steps. With b = log u and u uniform from 1 to longest - 1, σ(b) = u / (1 + u), so
    that time is 1 + u: uniform from 2 to ``longest``.

    - LSTM: b_f = log u, b_i = -b_f: what comes in is as little as what is forgotten.
    - GRU, h_t = (1 - z_t) n_t + z_t h_{t-1}: z keeps, so b_z = log u; 1 - z = σ(-b_z) is already
      the input's share. (Where a text writes h_t = z_t n_t + (1 - z_t) h_{t-1}, the sign is the
      other one.)
    - Any other cell of which :attr:`bptt.Cell.keeping` says which gate keeps the state; for a
      minimal gated unit b_f = -log u.
    - A rate network that learns its leak, ``bptt.cells.make_rate(alpha=None)``, and any other cell
      with such a :attr:`bptt.Cell.leak`: α = σ(w) with w = -log u, so that the time constants 1/α
      are uniform from 2 to ``longest`` steps.

    The sum of the two biases of torch.nn's layout is set, or the weights w in ``weight_units``.
    What else there is stays as it is.

    Args:
        module: one whose cell has a gate that keeps the state, or a leak that is learnt, or a
            module that has such inside.
        longest: the longest dependency that is expected, in steps, T_max; 2 at least.
        generator: draws u; torch's own by default.

    Raises:
        TypeError: there is no recurrent layer in the module, or one without gates; or the leak of
            one is fixed, as with ``make_rate(alpha=0.2)``, so that there is nothing to set.
        ConfigError: ``longest`` is below 2, or the module has no biases.

    >>> import torch, bptt
    >>> lstm = bptt.init.chrono_(bptt.LSTM(3, 1000), longest=50)
    >>> f = (lstm.bias_ih_l0 + lstm.bias_hh_l0)[1000:2000].sigmoid()
    >>> steps = 1 / (1 - f)
    >>> bool((steps > 1.99).all()), bool((steps < 50.01).all()), 24 < steps.mean() < 28
    (True, True, tensor(True))
    >>> rates = bptt.Recurrent(bptt.cells.make_rate(alpha=None), 3, 1000)
    >>> alpha = bptt.init.chrono_(rates, longest=50).weight_units_l0[0].sigmoid()
    >>> bool((1 / alpha > 1.99).all()), bool((1 / alpha < 50.01).all())
    (True, True)
    """
    if not (math.isfinite(longest) and longest >= 2):
        raise ConfigError(
            "bptt.init.chrono_: longest must be 2 steps or more (the longest dependency that is "
            f"expected), got {longest}"
        )
    with torch.no_grad():
        for layer in layers_for(module, "chrono_"):
            hidden = len(layer.ih) // layer.cell.gates_x
            u = torch.rand(hidden, generator=generator, dtype=torch.float64, device="cpu")
            _remember(layer, (1 + u * (longest - 2)).log().to(layer.ih))
    return module


def _remember(layer: LayerWeights, b: torch.Tensor) -> None:
    """Let the units keep the shares σ(b) of their state in a step."""
    keeping, leak = layer.cell.keeping, layer.cell.leak
    if keeping is not None:
        layer.set_bias(keeping.block, keeping.sign * b)
        if keeping.admits is not None:
            layer.set_bias(keeping.admits, -b)
    if leak is not None and leak.alpha is None:
        assert layer.units is not None
        layer.units.detach()[leak.weights] = -b


def forget_bias_(module: M, value: float = 1.0) -> M:
    """Open the forget gates: let the two biases of each add up to a value.

    R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical exploration of recurrent network
    architectures", ICML 2015, after F. Gers, J. Schmidhuber and F. Cummins, Neural Computation
    12 (2000). torch.nn's own is about 0: half of the cell's state is forgotten in a step. With
    1, σ(1) = 0.73 of it stays; σ(log(n - 1)) = 1 - 1/n keeps it for about n steps.

    For a GRU it is the bias of the update gate z, which keeps the state where it is 1; for a
    minimal gated unit, whose gate keeps it where it is 0, it is minus that of f. Where the gates
    are normalised, as a minimal LSTM's, the input gate gets the opposite bias. Other cells say it
    by :attr:`bptt.Cell.keeping`. The paper speaks of LSTMs only.

    Args:
        module: one whose cell has a gate that keeps the state, or a module that has such inside.
        value: the sum of ``bias_ih`` and ``bias_hh`` of that gate.

    Raises:
        TypeError: there is no recurrent layer in the module, or one without such a gate: a leak is
            set by :func:`chrono_`, or when the cell is made.
        ConfigError: the value is not a finite number, or the module has no biases.

    >>> import bptt
    >>> lstm = bptt.init.forget_bias_(bptt.LSTM(3, 2))
    >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0)[2:4].tolist()  # rows i, f, g, o
    [1.0, 1.0]
    """
    if not math.isfinite(value):
        raise ConfigError(f"bptt.init.forget_bias_: value must be a finite number, got {value}")
    with torch.no_grad():
        for layer in layers_for(module, "forget_bias_"):
            keeping = layer.cell.keeping
            assert keeping is not None
            layer.set_bias(keeping.block, keeping.sign * value)
            if keeping.is_normalised and keeping.admits is not None:
                layer.set_bias(keeping.admits, -keeping.sign * value)
    return module


def ring_(
    module: M,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    *,
    generator: torch.Generator | None = None,
) -> M:
    """Draw the eigenvalues λ of a linear recurrent unit uniformly from a ring, and what follows.

    A. Orvieto et al., arXiv:2303.06349 (2023). A unit forgets in about 1 / (1 - |λ|) steps, and
    turns by the angle of λ in each. γ becomes √(1 - |λ|²); Re B and Im B are normal with the
    standard deviation 1/√(2 I), and the bias is 0. New layers begin with the defaults; for long
    sequences the paper takes ``r_min=0.9, r_max=0.999`` and a ``max_phase`` of π/10 or less.

    Args:
        module: a :class:`bptt.LRU`, a :class:`bptt.Recurrent` of :data:`bptt.cells.LRU`, or a
            module that has such inside.
        r_min: the smallest |λ|.
        r_max: the greatest one, 1 at most.
        max_phase: the greatest angle of λ, in radians.
        generator: draws them; torch's own by default.

    Raises:
        TypeError: there is no recurrent layer in the module, or one of another cell.
        ConfigError: not 0 <= r_min <= r_max <= 1, or ``max_phase`` is not above 0.

    >>> import torch, bptt
    >>> lru = bptt.init.ring_(bptt.Recurrent(bptt.cells.LRU, 3, 100), 0.9, 0.999)
    >>> size = torch.exp(-torch.exp(lru.weight_units_l0[0]))
    >>> 0.8999 < size.min() < size.max() < 0.9991
    tensor(True)
    """
    if not 0 <= r_min <= r_max <= 1:
        raise ConfigError(
            f"bptt.init.ring_: expected 0 <= r_min <= r_max <= 1, got r_min={r_min}, r_max={r_max}"
        )
    if not (math.isfinite(max_phase) and max_phase > 0):
        raise ConfigError(f"bptt.init.ring_: max_phase must be above 0, got {max_phase}")
    for layer in layers_for(module, "ring_"):
        w = Weights(*(layer.ih, layer.hh, layer.b_ih, layer.b_hh), units=layer.units)
        on_a_ring(w, r_min, r_max, max_phase, generator)
    return module


def spectral_radius_(module: M, radius: float = 1.0) -> M:
    """Scale the recurrent weights so that their largest eigenvalue has this absolute value.

    The radius is what W_hh to the k-th power grows or shrinks by in a step, in the long run; it
    is what reservoir computing sets: H. Jaeger, GMD report 148 (2001). It is for the layers
    of an RNN or a rate network only: the eigenvalues of one gate's block say nothing about the
    state's. In a rate network with φ' = 1, an eigenvalue λ of W_hh becomes 1 - α + α λ for a step.
    Under Dale's law give :func:`bptt.cells.dales_law` the ``radius``.

    Args:
        module: a :class:`bptt.RNN` or :class:`torch.nn.RNN`, a :class:`bptt.Recurrent` of
            :data:`bptt.cells.RATE`, or a module that has such inside.
        radius: the spectral radius wanted, 0 or more.

    Raises:
        TypeError: there is no recurrent layer in the module, or one with gates, or its weights are
            parametrized.
        ConfigError: the radius is negative or not finite; or the weights have the radius 0, so
            that no scaling helps.

    >>> import torch, bptt
    >>> rnn = bptt.init.spectral_radius_(bptt.RNN(3, 50), 0.9)
    >>> round(torch.linalg.eigvals(rnn.weight_hh_l0).abs().max().item(), 4)
    0.9
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise ConfigError(
            f"bptt.init.spectral_radius_: radius must be a number from 0 on, got {radius}"
        )
    layers = layers_for(module, "spectral_radius_")
    found = [
        float(torch.linalg.eigvals(layer.hh.detach().double()).abs().max()) for layer in layers
    ]
    if not all(math.isfinite(now) and now > 0 for now in found):
        raise ConfigError(
            "bptt.init.spectral_radius_: the recurrent weights have the spectral radius "
            f"{min(found):g}, which cannot be scaled to {radius:g}; draw them anew, with "
            "bptt.init.orthogonal_"
        )
    with torch.no_grad():
        for layer, now in zip(layers, found, strict=True):
            layer.hh.detach().mul_(radius / now)
    return module


def cells_in(module: Any) -> tuple[Cell, ...]:
    """Return the cells of the recurrent modules in a module, once each.

    >>> [c.kind for c in cells_in(nn.Sequential(nn.LSTMCell(2, 3), nn.Linear(3, 3), nn.GRU(3, 3)))]
    ['LSTM', 'GRU']
    """
    parts = module.modules() if isinstance(module, nn.Module) else []
    return tuple(dict.fromkeys(cell for m in parts if (cell := cell_of(m)) is not None))
