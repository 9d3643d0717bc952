"""What the state remembers: which steps it holds, after each step, by where it came from."""

from __future__ import annotations

import numpy as np

from bptt._src.audit.record import Call, Matrix, Place, Record

Held = dict[int, Matrix]
"""Of each sequence, how much of its steps, [N]; 1 is all."""


def memory(record: Record) -> dict[tuple[int, int], Matrix]:
    """Find what the state after each step holds.

    Returns:
        M[t, s], [N, N], by the sequence of the state and that of the step: 1 where the state after
        step t has seen step s.
    """
    N = record.steps
    found: dict[tuple[int, int], Matrix] = {}

    def after(place: Place) -> Held:
        t = record.calls[place.call].first + place.t
        return {of: M[t] for (row, of), M in found.items() if row == place.row and M[t].any()}

    for call in record.calls:
        for row in range(call.batch):
            held = _union([after(place) for place in sources(call, row)])
            for t in range(call.lengths[row]):
                if call.resets is not None and call.resets[t, row]:
                    held = {}
                now = call.first + t
                own = held.get(row, np.zeros(N)).copy()
                own[now] = 1
                held = {**held, row: own}
                for of, values in held.items():
                    M = found.setdefault((row, of), np.zeros((N, N)))
                    M[now] = np.maximum(M[now], values)
    return found


def sources(call: Call, row: int) -> list[Place]:
    """After which steps the initial state of a sequence was returned; none if it is new.

    The graph knows better than values do: a state may have been transformed in between.
    """
    by_graph = {link.to for link in call.links[row] if link.weight}
    if by_graph:
        return sorted(by_graph)
    return sorted({o for o in call.origins[row] if isinstance(o, Place)})


def _union(all_held: list[Held]) -> Held:
    found: Held = {}
    for held in all_held:
        for of, values in held.items():
            found[of] = np.maximum(found[of], values) if of in found else values
    return found
