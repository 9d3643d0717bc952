"""Faults that are faults whatever was meant, and states that go on into other streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bptt._src.audit.evidence import Evidence
from bptt._src.audit.finding import Finding, many
from bptt._src.audit.record import START, ZERO, HeardCall, Place

SEVERAL = 2
"""Updates after which no gradient is no accident."""


def failed(e: Evidence) -> Iterator[Finding]:
    """The run's own error, where the reason lies in the state that was carried."""
    error = e.record.failure
    if error is None:
        return
    is_freed = "second time" in str(error)
    kind = "graph-freed" if is_freed else "old-graph"
    words = str(error).split(";")[0].split(": [")[0].split(" (or ")[0]
    message = f"the run raised {words!r}"
    became = "a backward pass has freed" if is_freed else "was made before the weights changed"
    call, origin = _last_attached(e)
    if call is None or origin is None:
        yield Finding(
            kind,
            True,
            f"{message}: no state carries a graph to the next call; the loss has one that {became}",
            means="A loss that is added up over windows goes back through all of them again.",
            instead="Call backward on the loss of each window alone, and start the sum anew, or "
            "add up loss.item().",
        )
        return
    sequence, t = e.start_of(call, 0)
    s = e.at(origin)[1]
    yield Finding(
        kind,
        True,
        f"{message}: the state given to step {t} still has the graph of step {s}, which {became}",
        *(t, s, sequence),
        "The state that is carried has to be cut from the graph between backward passes.",
        "Detach every tensor of it before the next window: state = tuple(s.detach() for s in "
        "state), or state.detach() where it is one tensor; the result has to be assigned.",
    )


def _last_attached(e: Evidence) -> tuple[HeardCall | None, Place | None]:
    heard = {n for p in e.record.passes for n in (*p.outputs, *(n for n, _ in p.after))}
    for call in reversed(e.record.calls):
        for links in call.links:
            if links.call in heard or e.record.calls[links.call].update < call.update:
                return call, Place(links.call, int(links.to_rows[0]), int(links.ts[0]))
    return None, None


def counted_twice(e: Evidence) -> Iterator[Finding]:
    """The same gradient in two backward passes."""
    if not e.credits.repeated:
        return
    first = min(e.credits.repeated, key=lambda pair: (e.at(pair[0])[1], e.at(pair[1])[1]))
    sequence, t = e.at(first[0])
    s = e.at(first[1])[1]
    times = len(e.credits.repeated)
    yield Finding(
        "counted-twice",
        True,
        f"the gradient of the loss of step {t} was added to the parameters' gradient again, in "
        f"another backward pass" + (f"; so were {times - 1} more" if times > 1 else ""),
        *(t, s, sequence),
        "These losses count several times. Where a loss is added up over windows, an earlier one "
        "counts more often.",
        "Call backward once for each loss; start the sum anew after each backward pass, and do "
        "not keep graphs by retain_graph=True. A gradient that is handed on by hand has to be "
        "cleared, h.grad = None, before the next one.",
    )


def old_graph(e: Evidence) -> Iterator[Finding]:
    """Gradients through calls that were made with older parameters."""
    if not e.credits.old or e.record.failure is not None:
        return
    loss, call = min(e.credits.old, key=lambda pair: (pair[0], -pair[1].first))
    t = e.start_of(e.record.call_of(loss))[1]
    sequence, s = e.at(Place(call.number, 0, call.lengths[0] - 1))
    yield Finding(
        "old-graph",
        True,
        f"the loss of step {t}, or of a later one, goes back through step {s}, which was computed "
        "before the parameters changed",
        *(t, s, sequence),
        "The gradient mixes values of the old parameters with the new ones, and the graph, its "
        "memory and its time grow with each window.",
        "Detach every tensor of the state before the next window, and assign the result; to credit "
        "beyond a window use bptt.Stream, which runs the steps again.",
    )


def parts_differ(e: Evidence) -> Iterator[Finding]:
    """H and c that are cut, carried or reset differently."""
    for call in e.record.calls:
        for row, origins in enumerate(call.origins):
            if len(origins) < 2:
                continue
            whole = len(call.attached[row]) == len(origins)
            if whole and not e.credits.by_hand_in_part:
                continue
            if (call, row) in e.credits.by_hand_in_part:
                parts: tuple[str, int] | None = "its gradient is handed on in part", 0
            else:
                parts = _apart(e, call, row, origins)
            if parts is not None:
                what, part = parts
                sequence, t = e.start_of(call, row)
                yield Finding(
                    "state-parts-differ",
                    True,
                    f"at step {t} the tensors of the state are treated differently: {what}",
                    *(t, _step_before(e, call, row, origins, part), sequence),
                    "What is detached, masked or handed on in one of them alone goes on, or is "
                    "lost, in the other.",
                    "Treat all of them alike: state = tuple(s.detach() for s in state), "
                    "state = tuple(s * mask for s in state).",
                )
                return


def _apart(
    e: Evidence, call: HeardCall, row: int, origins: list[Place | str]
) -> tuple[str, int] | None:
    return _cut_apart(e, call, row, origins) or _carried_apart(e, call, row, origins)


def _cut_apart(
    e: Evidence, call: HeardCall, row: int, origins: list[Place | str]
) -> tuple[str, int] | None:
    """Parts of which some are attached to an earlier call and others, from there too, are cut."""
    if not call.with_graph:
        return None
    attached = call.attached[row]
    cut = [
        i
        for i, o in enumerate(origins)
        if isinstance(o, Place) and i not in attached and e.record.calls[o.call].returned_graph[i]
    ]
    if not attached or not cut:
        return None
    name = e.record.part
    return f"gradient goes back through {name(min(attached))}, not through {name(cut[0])}", cut[0]


def _carried_apart(
    e: Evidence, call: HeardCall, row: int, origins: list[Place | str]
) -> tuple[str, int] | None:
    """Parts of which some come from an earlier step and others are new, or from another step."""
    by_graph, name = call.attached[row], e.record.part
    places = [(i, o) for i, o in enumerate(origins) if isinstance(o, Place)]
    carried = by_graph | {i for i, _ in places}
    if not carried:
        return None
    froms = {(o.call, o.t) for _, o in places}
    if len(froms) > 1 and not by_graph:
        (i, a), (j, b) = places[0], next(p for p in places if p[1][::2] != places[0][1][::2])
        one, other = e.at(a)[1], e.at(b)[1]
        return f"{name(i)} is that after step {one}, {name(j)} that after step {other}", j
    for i, origin in enumerate(origins):
        if origin in (ZERO, START) and i not in carried:
            source = _source_of(call, row, places)
            if source is not None and e.record.calls[source.call].ends_zero[source.row][i]:
                continue  # zero is what it was
            return f"{name(min(carried))} is carried on and {name(i)} is new", i
    return None


def _source_of(call: HeardCall, row: int, places: list[tuple[int, Place]]) -> Place | None:
    from_graph = call.sources[row]
    return from_graph[0] if from_graph else places[0][1] if places else None


def _step_before(
    e: Evidence, call: HeardCall, row: int, origins: list[Place | str], part: int
) -> int | None:
    own = origins[part]
    if isinstance(own, Place):
        return e.at(own)[1]
    found = call.sources[row]
    return e.at(found[0])[1] if found else None


def credits_nothing(e: Evidence) -> Iterator[Finding]:
    """No gradient over several updates, at the module or at a sequence of it."""
    calls = [c for c in e.record.calls if c.with_graph and c.is_training]
    if not e.record.can_learn:
        return
    if not calls and e.record.optimizer_steps >= SEVERAL:
        yield from _without_a_graph(e)
    if len(calls) < SEVERAL or e.record.failure is not None:
        return
    reaching = [p for p in e.record.passes if p.reaches_parameters]
    lost = "The module does not learn from these losses, and no error says so."
    if not e.credits.losses.any():
        if e.record.optimizer_steps < SEVERAL:
            return
        sequence, t = e.start_of(calls[0])
        yield Finding(
            "credits-nothing",
            True,
            f"no gradient arrived at the module in {many(len(calls), 'call')} with gradients "
            f"enabled and {many(e.record.optimizer_steps, 'step')} of an optimizer",
            *(t, t, sequence),
            lost,
            "Look for a detach, .data, .item(), NumPy or torch.no_grad between its results and "
            "the loss: a final state that a decoder starts from has to keep its graph.",
        )
        return
    if len(reaching) < SEVERAL:
        return
    there = np.zeros(e.record.batch, int)
    for c in calls:
        heard = any(c.number in p.outputs or (c.number, 0) in p.after for p in reaching)
        there[: c.batch] += heard
    for row in np.flatnonzero(~e.credits.losses.any(0) & (there >= SEVERAL)).tolist():
        call = next(c for c in calls if row < c.batch)
        sequence, t = e.start_of(call, row)
        yield Finding(
            "credits-nothing",
            True,
            f"no gradient arrived at sequence {sequence} in {there[row]} calls, while it did at "
            "others of the batch",
            *(t, t, sequence),
            lost,
            "Look at how the loss picks steps: of a packed sequence the last output is at its own "
            "length, and what is padded behind it has no gradient.",
        )
        return


def _without_a_graph(e: Evidence) -> Iterator[Finding]:
    sequence, t = e.start_of(e.record.calls[0])
    yield Finding(
        "credits-nothing",
        True,
        f"none of the module's calls had a graph, of {len(e.record.calls)}, while an optimizer "
        f"made {many(e.record.optimizer_steps, 'step')}",
        *(t, t, sequence),
        "The module does not learn, and no error says so.",
        "Call it outside torch.no_grad; of torch.utils.checkpoint use use_reentrant=False, which "
        "gives a gradient although no input requires one.",
    )


def other_sequence(e: Evidence) -> Iterator[Finding]:
    """A state that goes on into another stream than the labels say, or at another step."""
    if not e.has_labels:
        return
    moved: list[tuple[int, int, int, int]] = []
    shuffled: list[tuple[int, int, int, int]] = []
    misplaced: list[tuple[int, int, int]] = []
    for call in e.record.calls:
        for row in range(call.batch):
            q, t = e.start_of(call, row)
            for place in call.sources[row]:
                of, s = e.at(place)
                if -1 in (q, of):
                    continue
                if of != q:
                    (moved if place.row != row else shuffled).append((t, s, q, of))
                elif s != t - 1:
                    misplaced.append((t, s, q))
    if e.memory.across and not moved and not shuffled:
        q, t, of, s, _ = e.memory.across[0]
        yield Finding(
            "shuffled-batches",
            True,
            f"within a call, step {t + e.number.start} of stream {e.number.streams[q]} follows "
            f"step {s + e.number.start} of stream {e.number.streams[of]}",
            *(t + e.number.start, s + e.number.start, e.number.streams[q]),
            "Steps of several streams are one sequence for the module.",
            "If dimension 0 of the inputs is the batch, the module needs batch_first=True.",
        )
    if moved or shuffled:
        is_moved = bool(moved)
        t, s, q, of = (moved or shuffled)[0]
        yield Finding(
            "other-sequence" if is_moved else "shuffled-batches",
            True,
            f"stream {q} begins step {t} with the state of stream {of} after step {s}",
            *(t, s, q),
            "The network is given the past of another sequence; what it learns to do with it is "
            "noise.",
            "Give each stream its own state: bring the rows of the state into the order of the "
            "batch."
            if is_moved
            else "Carry the state only where the next batch goes on with the same streams, in the "
            "same rows: no shuffling; otherwise start from zero.",
        )
    if misplaced and any(s != t + 1 for t, s, _ in misplaced):  # read backwards, all is well
        t, s, q = misplaced[0]
        yield Finding(
            "wrong-step",
            True,
            f"stream {q} begins step {t} with the state after step {s}, not that after {t - 1}",
            *(t, s, q),
            "The state has seen steps that come again, or has missed some: windows that overlap "
            "need the state from where they begin.",
            "Store the state after the step before each window begins.",
        )
