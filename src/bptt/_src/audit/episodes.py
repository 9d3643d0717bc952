"""Episodes: what must not cross their ends, and where the state is reset instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit import matrices
from bptt._src.audit.evidence import Evidence
from bptt._src.audit.finding import Finding
from bptt._src.audit.matrices import Matrices
from bptt._src.audit.record import UNKNOWN, Place

FARTHEST = 3
"""By how many steps a reset is looked for."""
Flags = NDArray[np.bool_]


def crossings(e: Evidence) -> Iterator[Finding]:
    """Credit and memory across an episode's end, and resets that come late, early or too often."""
    if e.episodes is None:
        return
    ways = _by_way(e)
    shifts = [k for _, memory in ways if (k := _shift(e, memory))]
    if shifts:
        yield _shifted(e, shifts[0])
        return
    for way, memory in ways:
        crossed = _foreign(e, memory)
        if crossed is not None:
            q, t, s = crossed
            yield Finding(
                "memory-crosses-episode",
                True,
                f"{way}the state after step {t} still holds step {s}, of another episode",
                *(t, s, q),
                "An episode begins with what is left of the one before.",
                "Reset the whole state where an episode begins: resets= of bptt's modules, or "
                "multiply every tensor of it by 1 - done.",
            )
            break
    credited = _foreign(e, e.credit)
    if credited is not None:
        q, t, s = credited
        yield Finding(
            "credit-crosses-episode",
            True,
            f"the loss of step {t} is credited to step {s}, of another episode",
            *(t, s, q),
            "Steps are credited with what happened after their episode had ended.",
            "Reset the state where an episode begins, in training as in the rollout: that cuts "
            "the gradient too.",
        )
    if all(_foreign(e, memory) is None for _, memory in ways):
        yield from _not_carried(e)


def rollout_differs(e: Evidence) -> Iterator[Finding]:
    """Calls with and without a graph that reset the state at other steps."""
    ways = _modes(e)
    if len(ways) < 2:
        return
    (_, without), (_, trained) = ways
    if e.has_labels:
        both = _has_step_before(without) & _has_step_before(trained)
        both &= ~_unknown(e)
        differ = both & ~_at_borders(e, of_training=True) & (_resets(without) != _resets(trained))
        place = np.argwhere(differ)
        if not len(place):
            return
        q, t = place[0].tolist()
        is_reset_in = "rollout" if _resets(without)[q, t] else "training"
    elif e.episodes is not None:
        missed = [np.argwhere(_starts(e) & _has_step_before(m) & ~_resets(m)) for _, m in ways]
        if bool(len(missed[0])) == bool(len(missed[1])):
            return
        q, t = (missed[0] if len(missed[0]) else missed[1])[0].tolist()
        is_reset_in = "training" if len(missed[0]) else "rollout"
    else:
        return
    other = "training" if is_reset_in == "rollout" else "rollout"
    yield Finding(
        "rollout-differs",
        True,
        f"calls without a graph and those with one reset the state differently: at step "
        f"{t + e.number.start} it is reset in {is_reset_in} and not in {other}",
        *(t + e.number.start, t - 1 + e.number.start, e.number.streams[q]),
        "The network is trained on other states than it acts with, so that the probabilities, "
        "values or predictions of the two differ.",
        "Give both the same resets, from the same flags: episode starts stored beside the inputs.",
    )


# ------------------------------------------------------------------------------------- helpers


def _modes(e: Evidence) -> list[tuple[str, Matrices]]:
    """The memory of calls without and with a graph, where there are both."""
    if e.number.with_graph.all() or not e.number.with_graph.any():
        return []
    return [
        ("without a graph, ", matrices.held(e.record, e.number, False)),
        ("with a graph, ", matrices.held(e.record, e.number, True)),
    ]


def _by_way(e: Evidence) -> list[tuple[str, Matrices]]:
    return _modes(e)[::-1] if e.has_labels and _modes(e) else [("", e.memory)]


def _starts(e: Evidence) -> Flags:
    """Where an episode begins after another one, [Q, T]."""
    assert e.episodes is not None
    starts = np.zeros(e.episodes.shape, bool)
    before, now = e.episodes[:, :-1], e.episodes[:, 1:]
    starts[:, 1:] = (before != now) & (before >= 0) & (now >= 0)
    return starts


def _has_step_before(memory: Matrices) -> Flags:
    there = np.zeros(memory.seen.shape, bool)
    there[:, 1:] = (memory.seen[:, 1:] > 0) & (memory.seen[:, :-1] > 0)
    return there


def _resets(memory: Matrices) -> Flags:
    """Where the state holds nothing of the steps before, though there are some, [Q, T].

    One that holds older steps but not the last is not reset: that step was left out, as padding is.
    """
    before = np.tril(np.ones(memory.own.shape[1:]), -1)
    kept = (memory.own * before).max(2) > 0.5
    resets: Flags = _has_step_before(memory) & ~kept
    return resets


def _at_borders(e: Evidence, of_training: bool = False) -> Flags:
    """Where a call, perhaps only one with a graph, begins with a new state in every row, [Q, T]."""
    at = np.zeros((e.number.sequences, e.number.steps), bool)
    for call in e.record.calls:
        if of_training and not call.with_graph:
            continue
        if all(not any(isinstance(o, Place) for o in origins) for origins in call.origins):
            for row in range(call.batch):
                q = int(e.number.sequence[call.first, row])
                if q >= 0:
                    at[q, int(e.number.step[call.first, row])] = True
    return at


def _unknown(e: Evidence) -> Flags:
    """Where a call begins with a state of which nothing is known, [Q, T]."""
    at = np.zeros((e.number.sequences, e.number.steps), bool)
    for call in e.record.calls:
        for row, origins in enumerate(call.origins):
            q = int(e.number.sequence[call.first, row])
            if q >= 0 and UNKNOWN in origins and not call.sources[row]:
                at[q, int(e.number.step[call.first, row])] = True
    return at


def _shift(e: Evidence, memory: Matrices) -> int:
    """By how many steps the resets come late, or early if below 0; 0 if no shift fits."""
    starts, resets = _starts(e), _resets(memory)
    inside = _has_step_before(memory)
    starts &= inside
    if not (starts & ~resets).any():
        return 0
    ks: list[int] = sorted({*range(-FARTHEST, FARTHEST + 1)} - {0}, key=abs)
    for k in ks:
        moved = np.zeros_like(starts)
        if k > 0:
            moved[:, k:] = starts[:, :-k]
        else:
            moved[:, :k] = starts[:, -k:]
        free = _at_borders(e) & ~moved  # a new state for another reason
        if (moved & inside).any() and ((moved & inside) == (resets & ~free)).all():
            return k
    return 0


def _shifted(e: Evidence, k: int) -> Finding:
    q, t = np.argwhere(_starts(e))[0].tolist()
    start = e.number.start
    late = k > 0
    return Finding(
        "reset-late" if late else "reset-early",
        True,
        f"the state is reset {abs(k)} step{'s' if abs(k) > 1 else ''} "
        f"{'after' if late else 'before'} an episode begins: the first begins at step {t + start}, "
        f"the reset is at step {t + k + start}",
        *((t + start, t - 1 + start) if late else (t + k + start, t + k - 1 + start)),
        e.number.streams[q],
        "Losses of an episode's first steps are credited to the one before, which the state still "
        "holds."
        if late
        else "At its end an episode's beginning is forgotten.",
        "A flag 'done' of step t belongs to the state that goes into step t + 1: apply it there, "
        "as resets[t + 1].",
    )


def _foreign(e: Evidence, of: Matrices) -> tuple[int, int, int] | None:
    """Return the first entry between two episodes: sequence, t and s as they are called."""
    assert e.episodes is not None
    now, then = e.episodes[:, :, None], e.episodes[:, None, :]
    where = (now != then) & (now >= 0) & (then >= 0) & (np.abs(of.own) > 1e-9)
    if not where.any():
        return None
    t = int(np.argwhere(where.any((0, 2)))[0, 0])
    s = int(np.flatnonzero(where[:, t].any(0))[-1])
    q = int(np.flatnonzero(where[:, t, s])[0])
    return e.number.streams[q], t + e.number.start, s + e.number.start


def _not_carried(e: Evidence) -> Iterator[Finding]:
    """The state does not go on within an episode."""
    assert e.episodes is not None
    inside = np.zeros(e.episodes.shape, bool)
    inside[:, 1:] = (e.episodes[:, 1:] == e.episodes[:, :-1]) & (e.episodes[:, 1:] >= 0)
    lost = np.argwhere((_resets(e.memory) & inside & ~_unknown(e)).T)
    if not len(lost):
        return
    t, q = lost[0].tolist()
    t += e.number.start
    yield Finding(
        "not-carried",
        True,
        f"step {t} begins with a new state, though its episode goes on",
        *(t, t - 1, e.number.streams[q]),
        "What came before is forgotten, here and at every such step.",
        "Hand the state that one call returns to the next: y, state = rnn(x, state).",
    )
