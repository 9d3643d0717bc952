"""What findings are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bptt._src.audit.compose import Credits
from bptt._src.audit.matrices import Matrices, Numbering
from bptt._src.audit.record import HeardCall, Place, Record


@dataclass(frozen=True)
class Evidence:
    """All that findings are drawn from."""

    record: Record
    credits: Credits
    number: Numbering
    credit: Matrices
    memory: Matrices
    episodes: NDArray[Any] | None
    """[Q, T]; -1 where there is no such step."""
    has_labels: bool

    def at(self, place: Place) -> tuple[int, int]:
        """Return the sequence and the step of a place, as they are called."""
        g = self.record.calls[place.call].first + place.t
        q = int(self.number.sequence[g, place.row])
        if q < 0:  # padding
            return -1, -1
        return self.number.streams[q], int(self.number.step[g, place.row]) + self.number.start

    def start_of(self, call: HeardCall, row: int = 0) -> tuple[int, int]:
        """Return the sequence and the step with which a call begins, as they are called."""
        return self.at(Place(call.number, row, 0))
