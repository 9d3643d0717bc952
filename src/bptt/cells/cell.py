"""What a cell is: the equations of one step, and the sizes that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn.functional import linear

from bptt.cells.recursion import Recursion
from bptt.cells.weights import Blocks, State, Weights


class Nonlinearity(NamedTuple):
    """The φ of a cell that is nothing but h_t = φ(a_t), where a_t is linear in x_t and h_{t-1}."""

    name: str
    slope: float
    """sup |φ'|."""
    rectifies: bool = False
    """Whether φ' is zero on one side, as a ReLU's, so that a unit may be off."""
    derivative: Callable[[Tensor], Tensor] | None = None
    """φ' in terms of h_t, where it can be had from there."""


class Keeping(NamedTuple):
    """The gate by which a unit keeps its state: a share σ(a) of it, or 1 - σ(a) = σ(-a)."""

    gate: str
    """What it is called, as ``"forget"``."""
    block: int
    """Its block in ``weight_hh`` and ``weight_ih``."""
    sign: int = 1
    """1 where σ(a) is kept, -1 where σ(-a) is."""
    admits: int | None = None
    """The block of the gate for what comes in, if that is another one."""
    is_normalised: bool = False
    """Whether the share is that of the two gates' sum, σ(a) where the other one is σ(-a)."""


class Leak(NamedTuple):
    """The share α of its state that a leaky unit forgets at each step, whatever comes in.

    After n steps (1 - α)^n is left: by itself the leak forgets in about 1/α steps.
    """

    alpha: float | None = None
    """α, above 0 and at most 1, the same for all units; None: each unit's own, σ(w) of its weight
    w."""
    weights: int = 0
    """The vector of ``weight_units`` that holds w, where ``alpha`` is None."""
    longer: str = "a smaller alpha reaches further"
    """How to reach further than with this fixed ``alpha``, in words, for messages and advice."""
    is_average: bool = True
    """Whether what comes in is multiplied by α, x_t = (1 - α) x_{t-1} + α (...), so that a
    recurrent weight of 1 keeps what the leak forgets."""

    def of(self, w: Weights) -> Tensor:
        """Return α of each unit of a layer, [H] float64, or [1] where it is the same for all."""
        if self.alpha is not None:
            return torch.tensor([self.alpha], dtype=torch.float64)
        assert w.units is not None
        return w.units[self.weights].detach().double().sigmoid()


@dataclass(frozen=True, eq=False)
class Cell:
    """One step of a recurrent network, as its paper has it.

    The gates are linear in x_t and h_{t-1}; all else is elementwise, and is what ``equations``
    computes. Therefore every local derivative is diagonal, and the backward pass through a whole
    sequence follows from the equations alone (:mod:`bptt.cells.derived`).

    A cell of bptt is pickled by its name. One of your own is pickled with its equations, which
    pickle finds by their name only where they are defined at the top of a module; ``state_dict``
    needs none of this.

    Raises:
        ValueError: a number of blocks, states or vectors is too small, or another field does
            not fit the cell.

    >>> import torch
    >>> equations = lambda x, h, s, units: (0.9 * s[0] + 0.1 * torch.tanh(x[0] + h[0]),)
    >>> leaky = Cell("LEAKY", 1, 1, equations)
    >>> w = Weights(ih=torch.zeros(2, 3), hh=torch.zeros(2, 2))
    >>> leaky.step(torch.ones(1, 3), (torch.ones(1, 2),), w)
    (tensor([[0.9000, 0.9000]]),)
    """

    name: str
    """What it is called: for those that torch.nn has, its name of the mode, as ``"LSTM"``."""
    gates_x: int
    """Blocks of H rows in ``weight_ih``."""
    gates_h: int
    """Blocks of H rows in ``weight_hh``; 0 where h_{t-1} is read by the equations alone."""
    equations: Callable[[Blocks, Blocks, State, Blocks], State]
    """``(x, h, state, units) -> state``, elementwise: from the blocks of W_ih x_t + b_ih and of
    W_hh h_{t-1} + b_hh, the state before the step, and the vectors of ``weight_units``.

    With a projection the state's h is as wide as the output; equations that do not read it, as
    those of an LSTM, allow one.
    """
    states: int = 1
    """Tensors in the state."""
    units: int = 0
    """Vectors of weights that a unit has for itself, as an LSTM's peepholes."""
    by_hand: Recursion | None = None
    """Both passes over a sequence, derived by hand; None: those that follow from the equations."""
    is_native: bool = False
    """Whether the kernel library has this cell, under this name and with these sizes."""
    phi: Nonlinearity | None = None
    """Of a cell with one block and one tensor in its state, h_t = φ(a_t): what is known of φ."""
    gates: Callable[[Blocks, Blocks, State, Blocks], dict[str, Tensor]] | None = None
    """The values of the gates by name, from what ``equations`` is given."""
    keeping: Keeping | None = None
    """How it keeps its state, for :mod:`bptt.init` and the advice of :func:`bptt.gradient_flow`."""
    draw: Callable[[Weights], None] | None = None
    """Draws the initial weights of a layer, in place; None: they begin as torch.nn's do."""
    tied: tuple[int, ...] = ()
    """Tensors of the state that are parts of one thing, as a real and an imaginary part are, by
    their numbers: zoneout keeps all of them or none."""
    masks: int = 0
    """Blocks of x, behind those of ``weight_ih``, that are made by no product: masks of zoneout,
    [..., H] each, given beside x_t."""
    leak: Leak | None = None
    """How leaky units forget, for :mod:`bptt.init` and the advice of :func:`bptt.gradient_flow`."""
    mean: Callable[[State, State, float], State] | None = None
    """``(before, after, p) -> mean`` of the tensors that are ``tied``, with the weights p before a
    step and 1 - p after it; for tensors whose means, each by itself, would be inconsistent, as of
    a firing rate and the current of which it is a function. Zoneout uses it in evaluation."""

    def __post_init__(self) -> None:
        for name, least in (
            *(("gates_x", 1), ("gates_h", 0), ("states", 1), ("units", 0), ("masks", 0)),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"bptt.Cell: {name} must be at least {least}, got {getattr(self, name)}"
                )
        self._check_declared()

    def _check_declared(self) -> None:
        phi, tied = self.phi, self.tied
        if tied and not (len({*tied}) == len(tied) and {*tied} <= {*range(self.states)}):
            raise ValueError(
                f"bptt.Cell: tied names tensors of the state, 0 to {self.states - 1}, each once, "
                f"got {tied!r}"
            )
        if phi is not None and (
            not isinstance(phi, Nonlinearity)
            or (self.gates_x, self.gates_h, self.states, self.units) != (1, 1, 1, 0)
        ):
            raise ValueError(
                "bptt.Cell: phi is a Nonlinearity, of a cell with one block of x and of h, one "
                f"tensor in its state and no units, got {phi!r}"
            )
        if self.mean is not None and not tied:
            raise ValueError("bptt.Cell: mean averages the tensors that are tied: give tied, too")
        if self.keeping is not None:
            self._check_keeping(self.keeping)
        if self.leak is not None:
            self._check_leak(self.leak)

    def _check_keeping(self, keeping: Keeping) -> None:
        if not isinstance(keeping, Keeping) or keeping.sign not in (1, -1):
            raise ValueError(f"bptt.Cell: keeping is a Keeping of sign 1 or -1, got {keeping!r}")
        for block in (keeping.block, keeping.admits or 0):
            if not 0 <= block < self.gates_x:
                raise ValueError(
                    f"bptt.Cell: keeping names block {block}, and weight_ih has the blocks 0 to "
                    f"{self.gates_x - 1}"
                )

    def _check_leak(self, leak: Leak) -> None:
        if not isinstance(leak, Leak) or not (leak.alpha is None or 0 < leak.alpha <= 1):
            raise ValueError(
                "bptt.Cell: leak must be a Leak whose alpha is None, or above 0 and at most 1, got "
                f"{leak!r}"
            )
        if leak.alpha is None and not 0 <= leak.weights < self.units:
            raise ValueError(
                f"bptt.Cell: leak names vector {leak.weights} of weight_units, and the cell has "
                f"units={self.units}"
            )

    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Cell:
        return self  # nothing of it changes

    def step(
        self,
        x: Inexact[Tensor, "batch input"],
        state: tuple[Inexact[Tensor, "batch _"], ...],
        w: Weights,
    ) -> tuple[Inexact[Tensor, "batch _"], ...]:
        """Take one step, differentiable by autograd any number of times.

        Args:
            x: the input x_t, [B, I].
            state: the state before it, each of its tensors [B, ...].
            w: the layer's weights.

        Returns:
            The state after it.
        """
        of_x, of_h, units = self.blocks(x, state[0], w)
        after = self.equations(of_x, of_h, state, units)
        return after if w.hr is None else (linear(after[0], w.hr), *after[1:])

    @property
    def is_plain(self) -> bool:
        """Whether W_hh alone says what becomes of the state: h_t = φ(a_t), or a leaky average."""
        is_average = self.leak is not None and self.leak.is_average
        return self.phi is not None or (is_average and self.gates_h == 1)

    @property
    def kind(self) -> str:
        """Its name without that of its nonlinearity: ``"RNN"`` for ``"RNN_TANH"``."""
        return (
            self.name if self.phi is None else self.name.removesuffix(f"_{self.phi.name.upper()}")
        )

    def blocks(self, x: Tensor, h: Tensor, w: Weights) -> tuple[Blocks, Blocks, Blocks]:
        """Compute what the equations are given besides the state: blocks of x and of h, units.

        Args:
            x: the inputs, [..., I], with the masks beside them where there are any.
            h: the first tensor of the states before the step, [..., P].
            w: the layer's weights.
        """
        x, masks = self.inputs_and_masks(x, w)
        of_x = linear(x, w.ih, w.b_ih).chunk(self.gates_x, dim=-1)
        if masks is not None:
            of_x = (*of_x, *masks.chunk(self.masks, dim=-1))
        of_h = linear(h, w.hh, w.b_hh).chunk(self.gates_h, dim=-1) if self.gates_h else ()
        return of_x, of_h, () if w.units is None else w.units.unbind(0)

    def inputs_and_masks(self, x: Tensor, w: Weights) -> tuple[Tensor, Tensor | None]:
        """Take apart what a layer is given: x_t, [..., I], and masks [..., masks·H], or None."""
        if not self.masks:
            return x, None
        inputs = w.ih.shape[1]
        return x[..., :inputs], x[..., inputs:]

    def hidden(self, w: Weights) -> int:
        """Return the number of hidden units, H."""
        return w.ih.shape[0] // self.gates_x if w.ih.dim() else 0
