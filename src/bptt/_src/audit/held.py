"""What the state remembers: which steps it holds, after each step, by where it came from."""

from __future__ import annotations

import numpy as np

from bptt._src.audit.record import HeardCall, Matrix, Record

Others = dict[int, Matrix]
"""Steps of other sequences that a state holds, [N]; 1 is all."""


def memory(record: Record) -> dict[tuple[int, int], Matrix]:
    """Find what the state after each step holds.

    Returns:
        M[t, s], [N, N], by the sequence of the state and that of the step: 1 where the state after
        step t has seen step s.
    """
    N, B = record.steps, record.batch
    own = np.zeros((B, N, N))
    found: dict[tuple[int, int], Matrix] = {}
    for call in record.calls:
        held, others = _initial(record, call, own, found)
        lengths, rows = np.array(call.lengths), np.arange(call.batch)
        for t in range(call.steps):
            now = call.first + t
            if call.resets is not None:
                held[call.resets[t]] = 0
                for row in np.flatnonzero(call.resets[t]).tolist():
                    others.pop(row, None)
            held[:, now] = 1
            there = rows[t < lengths]
            own[there, now] = held[there]
            for row, each in others.items():
                for of, values in each.items() if t < lengths[row] else ():
                    M = found.setdefault((row, of), np.zeros((N, N)))
                    M[now] = np.maximum(M[now], values)
    return found | {(row, row): own[row] for row in range(B)}


def _initial(
    record: Record, call: HeardCall, own: Matrix, found: dict[tuple[int, int], Matrix]
) -> tuple[Matrix, dict[int, Others]]:
    """Return what a call's initial state holds of its sequences, [B, N], and of others."""
    held = np.zeros((call.batch, record.steps))
    others: dict[int, Others] = {}
    mixed = {row for row, _ in found}
    alone = [
        (row, record.calls[places[0].call].first + places[0].t)
        for row, places in enumerate(call.sources)
        if len(places) == 1 and places[0].row == row and row not in mixed
    ]
    if alone:
        rows, ts = np.array(alone).T
        held[rows] = own[rows, ts]
    done = {row for row, _ in alone}
    for row, places in enumerate(call.sources):
        for place in places if row not in done else ():
            t = record.calls[place.call].first + place.t
            all_held = {place.row: own[place.row, t]}
            all_held |= {of: M[t] for (of_row, of), M in found.items() if of_row == place.row}
            for of, values in all_held.items():
                if of == row:
                    held[row] = np.maximum(held[row], values)
                elif values.any():
                    each = others.setdefault(row, {})
                    each[of] = np.maximum(each[of], values) if of in each else values.copy()
    return held, others
