"""What zoneout adds to a module of layers: its rates, the cells that are run, and the masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bptt._src.dropout import masks
from bptt.cells import Cell
from bptt.cells.zoneout import Rates, mask_rates, rates_of, with_zoneout


class WithZoneout:
    """A part of :class:`bptt._src.layers.Layers`, as which it is checked."""

    cell: Cell
    hidden_size: int
    proj_size: int
    training: bool
    _zoneout: Rates = ()
    _zoned: tuple[Cell, Cell]
    """The cells that are run in training and in evaluation: attributes, for torch.compile."""

    @property
    def zoneout(self) -> Rates:
        """For each tensor of the state, the probability that a unit keeps it; (): none is kept.

        A number, or one for each tensor, may be assigned to it.
        """
        return self._zoneout

    @zoneout.setter
    def zoneout(self, given: float | Sequence[float]) -> None:
        called, cell = f"bptt.{type(self).__name__}", self.cell
        self._zoneout = rates = rates_of(called, cell, given, self.proj_size > 0)
        self._zoned = (with_zoneout(cell, rates, True), with_zoneout(cell, rates, False))

    def _stepped(self, draws: bool = True) -> Cell:
        """Return the cell that is run: with zoneout, by masks where some are drawn in training."""
        if not self._zoneout:
            return self.cell
        return self._zoned[0] if draws and self.training else self._zoned[1]

    def _masks(self, like: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Draw the masks of zoneout for the rows of a layer, which stand beside its inputs."""
        return masks(like, rows, mask_rates(self.cell, self._zoneout), self.hidden_size)
