"""Whether a segment that is run again gives the results of its first run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bptt._src.pytree import is_float, leaves_of


class Repeated:
    """Some numbers of each segment's results, to be compared with those of a recomputation."""

    def __init__(self) -> None:
        self.noted: dict[int, list[Tensor]] = {}
        self.strayed: list[tuple[int, Tensor]] = []

    def note(self, i: int, results: Any) -> None:
        """Record some numbers of a segment's results."""
        self.noted[i] = _some_of(results)

    def compare(self, i: int, results: Any) -> None:
        """Compare them with those of a recomputation; :meth:`refuse_strayed` has the answer."""
        for before, now in zip(self.noted[i], _some_of(results), strict=True):
            away = (now - before).nan_to_num().norm() > 0.05 * before.nan_to_num().norm()
            self.strayed.append((i, away))

    def refuse_strayed(self, segments: list[tuple[int, int]]) -> None:
        """Refuse a module whose results differed when it was run again."""
        strayed, self.strayed = self.strayed, []
        for i, away in strayed:
            if bool(away):
                first, end = segments[i]
                raise RuntimeError(
                    f"bptt.unroll: the steps {first} to {end - 1} gave other results when "
                    "memory= ran them again: the module keeps a state in itself, or draws from a "
                    "generator that is not torch's; return all of the state, or use memory=None"
                )


def _some_of(results: Any) -> list[Tensor]:
    """Some numbers from all over each tensor, in double precision."""
    found = []
    for v in leaves_of(results):
        if is_float(v):
            flat = v.detach().reshape(-1)
            picked = flat[:: max(1, len(flat) // 64)]
            found.append((torch.view_as_real(picked) if picked.is_complex() else picked).double())
    return found
