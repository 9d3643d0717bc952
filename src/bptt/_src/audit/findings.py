"""All that an audit finds, faults first."""

from __future__ import annotations

from bptt._src.audit import episodes, facts, faults
from bptt._src.audit.evidence import Evidence
from bptt._src.audit.finding import Finding

LOOKS = (
    faults.failed,
    faults.counted_twice,
    faults.old_graph,
    faults.parts_differ,
    faults.credits_nothing,
    faults.other_sequence,
    episodes.crossings,
    episodes.rollout_differs,
    facts.windows,
    facts.online,
    facts.batch_borders,
    facts.final_state_loss,
    facts.replayed,
    facts.stale_state,
    facts.rows_permuted,
    facts.weights_unknown,
    facts.state_unknown,
    facts.fed_back,
    facts.by_hand,
    facts.not_recorded,
    facts.reach,
)


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """Draw all findings."""
    found = [finding for look in LOOKS for finding in look(evidence)]
    return tuple(sorted(found, key=lambda f: not f.is_fault))
