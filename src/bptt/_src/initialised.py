"""Which layers a function of :mod:`bptt.init` sets, or why it refuses a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from bptt._src.cell_of import cell_of
from bptt._src.layers import Layers
from bptt._src.recurrent import Recurrent
from bptt.cells import CELLS, Cell
from bptt.cells.dale import obeys_dales_law
from bptt.cells.lru import on_a_ring
from bptt.errors import ConfigError


class LayerWeights(NamedTuple):
    """One layer in one direction."""

    cell: Cell
    ih: Tensor
    """``weight_ih``, [G·H, I]."""
    hh: Tensor
    """``weight_hh``, [G·H, P]."""
    b_ih: Tensor | None
    b_hh: Tensor | None
    units: Tensor | None
    """``weight_units``, [U, H]."""

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The rows of ``weight_hh`` that belong to each block, [H, P]."""
        return self.hh.detach().chunk(self.cell.gates_h) if self.cell.gates_h else ()

    def set_bias(self, block: int, value: Tensor | float) -> None:
        """Make the biases of a block add up to a value, all of it in ``bias_ih``."""
        if self.b_ih is None or self.b_hh is None:
            raise ConfigError(
                "bptt.init: the module has no biases to set: it was made with bias=False"
            )
        self.b_ih.detach().chunk(self.cell.gates_x)[block][:] = value
        if block < self.cell.gates_h:
            self.b_hh.detach().chunk(self.cell.gates_h)[block][:] = 0.0


class _Function(NamedTuple):
    """A function of bptt.init."""

    suits: Callable[[Cell], object]
    """Whether it is for a cell."""
    sets: tuple[str, ...]
    """How the names of the parameters that it sets begin."""
    declared: str = ""
    """The fields by which a user's own cell declares that it suits."""


def _has_a_matrix(cell: Cell) -> bool:
    return cell.gates_h > 0


def _is_plain(cell: Cell) -> bool:
    return cell.is_plain


def _keeps(cell: Cell) -> bool:
    return cell.keeping is not None or (cell.leak is not None and cell.leak.alpha is None)


def _has_a_gate(cell: Cell) -> bool:
    return cell.keeping is not None


def _is_on_a_ring(cell: Cell) -> bool:
    return cell.draw is on_a_ring


FUNCTIONS = {
    "chrono_": _Function(_keeps, ("bias_", "weight_units"), "keeping= or leak="),
    "forget_bias_": _Function(_has_a_gate, ("bias_",), "keeping="),
    "ring_": _Function(_is_on_a_ring, ("weight_ih", "weight_units", "bias_")),
    "orthogonal_": _Function(_has_a_matrix, ("weight_hh",)),
    "identity_": _Function(_is_plain, ("weight_hh", "bias_"), "phi= or leak="),
    "spectral_radius_": _Function(_is_plain, ("weight_hh",), "phi= or leak="),
}


def layers_for(module: nn.Module, function: str) -> list[LayerWeights]:
    """Return all recurrent layers of a module, each direction by itself.

    Args:
        module: what the function was given.
        function: its name, one of :data:`FUNCTIONS`.

    Raises:
        TypeError: there is none, or one whose cell does not suit, or one whose weights are
            computed.
    """
    parts = module.modules() if isinstance(module, nn.Module) else ()
    found = [(m, cell) for m in parts if (cell := cell_of(m)) is not None]
    if not found:
        raise TypeError(
            f"bptt.init.{function}: expected a recurrent module of bptt or torch.nn, or one that "
            f"has such inside, got {type(module).__name__}"
        )
    for m, cell in found:
        suitable = _suitable(m, cell)
        if function not in suitable:
            raise TypeError(
                f"bptt.init.{function} is for {_whom(function)}, got {_words(m, cell)}"
                f"{_instead(cell, function, suitable)}"
            )
        _check_settable(m, function)
    return [layer for m, cell in found for layer in _layers_of(m, cell)]


def _suitable(module: nn.Module, cell: Cell) -> list[str]:
    """Return the functions that a module's layers can be given to."""
    projects = bool(getattr(module, "proj_size", 0))
    return [
        name
        for name, of in FUNCTIONS.items()
        if of.suits(cell) and not (projects and of.suits is _is_plain)
    ]


def _whom(function: str) -> str:
    """Name the cells that a function is for."""
    suits, _, declared = FUNCTIONS[function]
    kinds = ", ".join(dict.fromkeys(cell.kind for cell in CELLS if suits(cell)))
    return f"{kinds} (a Cell of your own declares it by {declared})" if declared else kinds


def _words(module: nn.Module, cell: Cell) -> str:
    of = f" of {cell.name}" if isinstance(module, Recurrent) else ""
    projects = " with proj_size" if getattr(module, "proj_size", 0) else ""
    return f"{type(module).__name__}{of}{projects}"


def _instead(cell: Cell, function: str, suitable: list[str]) -> str:
    """Say what to use for a cell; never a function that would refuse it, too."""
    leak = cell.leak
    if leak is not None and leak.alpha is not None and function in ("chrono_", "forget_bias_"):
        return f", whose leak is fixed, 1/alpha = {1 / leak.alpha:.3g} steps: {leak.longer}"
    if not suitable:
        return "; nothing in bptt.init is for it: set its weights yourself, under torch.no_grad()"
    return f"; use {' or '.join(suitable)}"


def _check_settable(module: nn.Module, function: str) -> None:
    """Refuse a module whose weights are computed, if the function would set those."""
    found = getattr(module, "parametrizations", None)
    computed = list(found) if isinstance(found, nn.ModuleDict) else []
    name = next((n for n in computed if n.startswith(FUNCTIONS[function].sets)), None)
    if name is None:
        return
    if obeys_dales_law(module):
        raise TypeError(
            f"bptt.init.{function}: {name} obeys Dale's law, which would keep only magnitudes: "
            "to set the initial spectral radius, give bptt.cells.dales_law radius="
        )
    raise TypeError(
        f"bptt.init.{function}: {name} of {type(module).__name__} is parametrized "
        "(torch.nn.utils.parametrize), so that it cannot be set in place; initialise before "
        "the parametrization is registered"
    )


def _layers_of(module: nn.Module, cell: Cell) -> Iterator[LayerWeights]:
    suffixes = [""]
    if isinstance(module, nn.RNNBase | Layers):
        directions = ("", "_reverse")[: 1 + bool(module.bidirectional)]
        suffixes = [f"_l{n}{d}" for n in range(module.num_layers) for d in directions]
    for suffix in suffixes:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_units")
        yield LayerWeights(cell, *(getattr(module, name + suffix, None) for name in names))  # type: ignore[arg-type]
