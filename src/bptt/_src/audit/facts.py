"""Facts: what is so, and may be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from bptt._src.audit.evidence import Evidence
from bptt._src.audit.finding import Finding, many
from bptt._src.audit.record import ELSEWHERE, UNKNOWN, HeardCall


def _carried(call: HeardCall) -> bool:
    return any(call.sources)


def windows(e: Evidence) -> Iterator[Finding]:
    """Credit that is cut between calls while the state is carried."""
    cuts = [
        c
        for c in e.record.calls
        if c.with_graph and _carried(c) and not (c.links or c.is_online) and _is_credited(e, c)
    ]
    if not cuts:
        return
    sizes = Counter(c.steps for c in cuts)
    size = ", ".join(str(n) for n, _ in sizes.most_common(3))
    sequence, t = e.start_of(cuts[0])
    yield Finding(
        "windows",
        False,
        f"between calls the state is carried and the gradient is cut, {many(len(cuts), 'time')}, "
        f"first before step {t}; calls are of {size} steps",
        *(t, t - 1, sequence),
        "The loss of a window's first step is credited to one step, that of its second to two, and "
        "so on.",
        "To credit every loss to k steps or more: bptt.Stream with bptt.Truncated(every=k, "
        "reach=2 * k).",
    )


def online(e: Evidence) -> Iterator[Finding]:
    """Credit of earlier calls that needs no gradient sent to them."""
    calls = [c for c in e.record.calls if c.is_online and _carried(c) and _is_credited(e, c)]
    if calls:
        sequence, t = e.start_of(calls[0])
        yield Finding(
            "online",
            False,
            f"sensitivities credit losses to all steps before their call (credit='online'), "
            f"{many(len(calls), 'time')}, first before step {t}",
            *(t, t - 1, sequence),
            "So it is for the weights of this module. What lies below it, as an embedding, is "
            "credited within a call.",
        )


def _is_credited(e: Evidence, call: HeardCall) -> bool:
    return bool(e.credits.losses[call.first : call.first + call.steps].any())


def batch_borders(e: Evidence) -> Iterator[Finding]:
    """Calls that begin with a new state."""
    calls = [c for c in e.record.calls if c.steps > 1 or not c.returns_state_only]
    new = [c for c in calls[1:] if not _carried(c) and not _is_unknown(c)]
    if not new:
        return
    if len(new) == len(calls) - 1:
        yield Finding(
            "never-carried",
            False,
            f"each of {len(calls)} calls begins with a new state",
            means="Right where every sequence is whole within a call.",
            instead="Where sequences go on in the next call: y, state = rnn(x, state).",
        )
        return
    sequence, t = e.start_of(new[0])
    yield Finding(
        "batch-borders",
        False,
        f"{many(len(new), 'call')} after the first {'begins' if len(new) == 1 else 'begin'} with "
        f"a new state, first at step {t}",
        *(t, None, sequence),
    )


def _is_unknown(call: HeardCall) -> bool:
    return any({UNKNOWN, ELSEWHERE} & {*origins} for origins in call.origins)


def final_state_loss(e: Evidence) -> Iterator[Finding]:
    """A loss that is computed from the state that a call returned."""
    if e.credits.final_losses:
        sequence, t = e.at(e.credits.final_losses[0])
        yield Finding(
            "final-state-loss",
            False,
            f"a gradient arrives at the state after step {t}; it counts as a loss of that step",
            *(t, t, sequence),
        )


def replayed(e: Evidence) -> Iterator[Finding]:
    """Labelled steps with a loss in several calls."""
    if e.has_labels and (e.credit.seen > 1).any():
        q, t = np.argwhere(e.credit.seen > 1)[0].tolist()
        yield Finding(
            "replayed",
            False,
            f"losses of the same steps came {int(e.credit.seen.max())} times, in several calls, "
            "as in epochs or replays; their credit is the mean",
            *(t + e.number.start, None, e.number.streams[q]),
        )


def stale_state(e: Evidence) -> Iterator[Finding]:
    """States that were computed several updates before they are used."""
    worst, at = 1, None
    for call in e.record.calls:
        for row in range(call.batch) if call.with_graph else ():
            for place in call.sources[row]:
                age = call.update - e.record.calls[place.call].update
                if age > worst:
                    worst, at = age, (call, row, place)
    if at is not None:
        call, row, place = at
        sequence, t = e.start_of(call, row)
        yield Finding(
            "stale-state",
            False,
            f"step {t} begins with a state that was computed {worst} updates before",
            *(t, e.at(place)[1], sequence),
            "The current parameters would have made another one.",
            "Run some steps before the window again, without a loss: a burn-in.",
        )


def rows_permuted(e: Evidence) -> Iterator[Finding]:
    """States that go on in another row of the batch, where no labels say whose they are."""
    if e.has_labels:
        return
    for call in e.record.calls:
        for row in range(call.batch):
            other = [p for p in call.sources[row] if p.row != row]
            if other:
                t = e.start_of(call, row)[1]
                yield Finding(
                    "rows-permuted",
                    False,
                    f"row {row} of the batch begins step {t} with the state of row {other[0].row}",
                    *(t, e.at(other[0])[1], row),
                    "Right if the sequence has moved there too; label= would tell.",
                )
                return


def weights_unknown(e: Evidence) -> Iterator[Finding]:
    """States that are transformed between calls."""
    if e.credits.unknown:
        call = min(e.credits.unknown, key=lambda c: c.first)
        sequence, t = e.start_of(call)
        yield Finding(
            "weights-unknown",
            False,
            f"the state is transformed before step {t} ({', '.join(sorted(call.operations))}), so "
            "the weight of what goes on is no single number; it is shown as 1",
            *(t, t - 1, sequence),
        )


def state_unknown(e: Evidence) -> Iterator[Finding]:
    """Initial states of which nothing is known."""
    unknown = [
        (call, row)
        for call in e.record.calls
        for row, origins in enumerate(call.origins)
        if {UNKNOWN, ELSEWHERE} & {*origins} and not call.sources[row]
    ]
    if unknown:
        sequence, t = e.start_of(*unknown[0])
        yield Finding(
            "state-unknown",
            False,
            f"step {t} begins with a state that no call returned, in {len(unknown)} places: it was "
            "changed by noise, rounding or an operation, or comes from elsewhere",
            *(t, None, sequence),
            "What it remembers cannot be told; it is shown as new.",
        )


def fed_back(e: Evidence) -> Iterator[Finding]:
    """Outputs that come back as inputs, with their graph."""
    for call in e.record.calls:
        if call.fed_back:
            sequence, t = e.start_of(call)
            s = e.start_of(e.record.calls[call.fed_back[-1]])[1]
            yield Finding(
                "fed-back",
                False,
                f"the inputs of step {t} depend on the outputs of step {s}, with their graph",
                *(t, s, sequence),
                "Gradient that flows back through the inputs arrives at outputs as a loss would, "
                "and is counted as one of that step.",
            )
            return


def by_hand(e: Evidence) -> Iterator[Finding]:
    """Gradients of the state that the code itself hands from one backward pass to the next."""
    if e.credits.by_hand:
        sequence, t = e.start_of(min(e.credits.by_hand, key=lambda c: c.first))
        yield Finding(
            "carried-by-hand",
            False,
            f"the gradient of the state before step {t} is handed on in another backward pass",
            *(t, t - 1, sequence),
        )


def not_recorded(e: Evidence) -> Iterator[Finding]:
    """Steps after the last that is recorded."""
    if e.record.not_recorded:
        yield Finding(
            "not-recorded",
            False,
            f"{e.record.steps} steps are recorded, {e.record.not_recorded} more came after them",
            instead="steps= says how many are recorded.",
        )


def reach(e: Evidence) -> Iterator[Finding]:
    """How far back losses are credited, and how far the state remembers."""
    t, s = np.nonzero(e.credit.own.any(0))
    if not len(t):
        yield Finding(
            "no-loss", False, "no gradient arrived at any step", means="Nothing was credited."
        )
        return
    reaches = t - s + 1
    held, of = np.nonzero(e.memory.own.any(0))
    yield Finding(
        "reach",
        False,
        f"losses are credited to at most {reaches.max()} steps, their own included; the state "
        f"holds at most {(held - of).max() + 1}",
        means=_effective(e),
    )


def _effective(e: Evidence) -> str:
    """Write how far the gradient reaches with the inputs and the weights of the run."""
    found = e.record.reach
    if found is None:
        return ""
    beyond = "" if found.is_settled else ", and may go beyond"
    return (
        f"With these weights and inputs 99 % of a loss's gradient lies within {found.steps} of "
        f"{found.of} steps{beyond}."
    )
