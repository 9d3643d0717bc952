"""What an audit found: the matrices, the findings, and how they are told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.audit.compose import Composer, Credits
from bptt._src.audit.evidence import Evidence
from bptt._src.audit.finding import Finding, many
from bptt._src.audit.findings import find
from bptt._src.audit.matrices import Matrices, Numbering, credit, held, numbering
from bptt._src.audit.record import Matrix, Record
from bptt._src.audit.words import report_in_words
from bptt._src.credit.plan import Plan, plan_for
from bptt._src.credit.spelling import as_credit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Compared:
    """Whether an audited credit is the one that was expected: true, or where it first differs."""

    expected: str
    """What was expected, in words."""
    first: tuple[int, int] | None = None
    """The first (t, s) that differs; None if none does."""
    sequence: int | None = None
    """The sequence where it does."""
    found_weight: float | None = None
    """W[t, s] there."""
    expected_weight: float | None = None
    """What was expected in its place."""
    reason: str = ""
    """Why nothing could be compared."""

    def __bool__(self) -> bool:
        return self.first is None and not self.reason

    def __str__(self) -> str:
        """Write it in one line."""
        if self.reason:
            return f"not {self.expected}: {self.reason}"
        if self.first is None:
            return f"the credit is {self.expected}"
        t, s = self.first
        return (
            f"not {self.expected}: the loss of step {t} credits step {s} with weight "
            f"{self.found_weight:.6g}, expected {self.expected_weight:.6g} (sequence "
            f"{self.sequence})"
        )


class Audit:
    """What :func:`bptt.audit` returns.

    Attributes:
        credit: W[t, s], how much of the loss of step t is credited to step s: the mean over the
            sequences that have a loss there; float64 [T, T].
        credits: the same of each sequence, [B, T, T].
        memory: how much of step s the state after step t holds, 1 or 0, the mean over the
            sequences; [T, T]. Of labelled steps that came both with a graph and without, as in
            training and in a rollout before it, it is that of the calls with a graph.
        memories: the same of each sequence, [B, T, T].
        has_loss: whether a loss arrived at each step, bool [B, T].
        findings: what is to be said, faults first.
        steps: the number of steps T.
        sequences: the names of the sequences: places in the batch, or the labels' streams.
        start: the number of the first step.
    """

    def __init__(self, record: Record, has_episodes: bool, has_labels: bool) -> None:
        self.record = record
        self._numbers: Numbering = numbering(record)
        self._credits: Credits = Composer(record).compose()
        self._credit: Matrices = credit(self._credits, self._numbers)
        mixed = self._numbers.with_graph.any() and not self._numbers.with_graph.all()
        self._memory = held(record, self._numbers, True if mixed and has_labels else None)
        self.steps, self.start = self._numbers.steps, self._numbers.start
        self.sequences = self._numbers.streams
        self.credits, self.credit = self._credit.own, self._credit.mean()
        self.memories, self.memory = self._memory.own, self._memory.mean()
        self.has_loss = self._credit.seen > 0
        self.episodes = self._episodes() if has_episodes else None
        evidence = Evidence(
            record, self._credits, self._numbers, self._credit, self._memory, self.episodes,
            has_labels,
        )  # fmt: skip
        self.findings: tuple[Finding, ...] = find(evidence)

    def _episodes(self) -> NDArray[np.int64]:
        """The episode of each step, [B, T]; -1 where there is no such step."""
        assert self._numbers.episode is not None
        found = np.full((len(self.sequences), self.steps), -1)
        there = self._numbers.sequence >= 0
        at = self._numbers.sequence[there], self._numbers.step[there]
        found[at] = self._numbers.episode[there]
        if (found[at] != self._numbers.episode[there]).any():
            raise ValueError(
                "bptt.audit: episodes gives a step two numbers, one where it came first and "
                "another where it came again; number each step of a stream once"
            )
        return found

    @property
    def counts(self) -> str:
        """How much was recorded, in words."""
        return (
            f"{many(len(self.record.calls), 'call')}, {many(self.steps, 'step')} of "
            f"{many(len(self.sequences), 'sequence')}, "
            f"{many(len(self.record.passes), 'backward pass')}"
        )

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What is wrong."""
        return tuple(f for f in self.findings if f.is_fault)

    @property
    def facts(self) -> tuple[Finding, ...]:
        """What is so, and may be meant."""
        return tuple(f for f in self.findings if not f.is_fault)

    @cached_property
    def is_bidirectional(self) -> bool:
        """Whether the module reads its sequences both ways; then credit above t > s is shown."""
        return any(c.is_bidirectional for c in self.record.calls)

    def is_(self, expected: Any) -> Compared:
        """Compare the credit with one that you expect.

        Steps without a loss are passed over. Where episodes were given, nothing is expected to
        cross their ends.

        Args:
            expected: a credit such as ``bptt.Truncated(20)`` or its spelling, a plan for T steps,
                or a matrix [T, T]. A credit that draws, such as :class:`bptt.Randomized`, has no
                matrix of its own: give the plan.

        Returns:
            What is true if they are the same, and otherwise names the first (t, s) that differs.
        """
        name, W = self._expected(expected)
        if not self.has_loss.any():
            return Compared(name, reason="no loss arrived at any step")
        for q, of in enumerate(self.sequences):
            wanted = W
            if self.episodes is not None:
                same = self.episodes[q][:, None] == self.episodes[q]
                wanted = W * same
            there = (self._memory.seen[q] > 0) | self.has_loss[q]
            differs = np.abs(self.credits[q] - wanted) > 1e-5
            differs &= self.has_loss[q][:, None] & there
            differs = np.tril(differs) if self.is_bidirectional else differs
            if differs.any():
                t, s = np.argwhere(differs)[0].tolist()
                at = t + self.start, s + self.start
                found, due = float(self.credits[q][t, s]), float(wanted[t, s])
                return Compared(name, at, of, found, due)
        return Compared(name)

    def _expected(self, expected: Any) -> tuple[str, Matrix]:
        T = self.steps
        if isinstance(expected, np.ndarray) or hasattr(expected, "detach"):
            W = np.asarray(expected, float)
            if W.shape != (T, T):
                raise ValueError(
                    f"Audit.is_: expected a matrix [{T}, {T}] for {T} steps, got {list(W.shape)}"
                )
            return "the matrix given", W
        if isinstance(expected, Plan):
            plan = expected.plan(T)
            return "the plan given", plan.matrix() if plan.batch is None else plan.matrix()[0]
        asked = as_credit(expected)
        first, again = (plan_for(asked, T, 1, where="Audit.is_").matrix() for _ in range(2))
        if not np.array_equal(first, again):
            raise ValueError(
                f"Audit.is_: {expected!r} draws other weights each time; give the plan that was "
                "drawn"
            )
        return repr(asked), first if first.ndim == 2 else first[0]

    def __str__(self) -> str:
        """Write the matrices and the findings."""
        return report_in_words(self)

    def __repr__(self) -> str:
        """Name the sizes; the report is what ``print`` writes."""
        return (
            f"<Audit of a {self.record.name}: {self.steps} steps, {len(self.sequences)} sequences, "
            f"{len(self.faults)} faults, {len(self.facts)} facts>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, such as json takes."""
        return {
            "format": "bptt.audit",
            "version": 1,
            **self.record.to_dict(),
            "steps": self.steps,
            "start": self.start,
            "sequences": list(self.sequences),
            "credit": self.credit.tolist(),
            "credits": self.credits.tolist(),
            "memory": self.memory.tolist(),
            "memories": self.memories.tolist(),
            "has_loss": self.has_loss.tolist(),
            "episodes": None if self.episodes is None else self.episodes.tolist(),
            "findings": [f.to_dict() for f in self.findings],
        }

    def call_places(self) -> list[tuple[int, int, int]]:
        """Return where each sequence of each call begins: (sequence, step, number of steps).

        Both are places in the matrices, counted from 0.
        """
        number = self._numbers
        return [
            (int(number.sequence[c.first, row]), int(number.step[c.first, row]), c.lengths[row])
            for c in self.record.calls
            for row in range(c.batch)
            if c.lengths[row]
        ]

    def figure(self, title: str | None = None) -> Figure:
        """Draw it: a figure of matplotlib's, unknown to pyplot, so nothing has to be closed.

        Args:
            title: what stands above; by default what was audited.
        """
        from bptt._src.report.audit_figure import draw_audit

        return draw_audit(self, title)

    def save_html(self, path: str | Path, title: str | None = None) -> None:
        """Write a page to look at, in which one can point at every weight: one file, no network.

        Args:
            path: the file; an existing one is replaced once the new one is complete.
            title: what was audited; by default the module's name.
        """
        from bptt._src.report.audit_page import write

        write(path, self, title)
