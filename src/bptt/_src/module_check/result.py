"""What :func:`bptt.check_module` returns: a table of checks, and what is wrong first in each."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["passed", "wrong", "does not apply"]


@dataclass(frozen=True)
class WrongNumber:
    """The first wrong number that a check found."""

    of: str
    """The tensor: ``"y"``, ``"h_n"``, ``"c_n"``, or named after the state, as ``"final v"``."""
    by: str | None
    """What it is differentiated by: ``"x"``, ``"h_0"``, a parameter; None: a value is wrong."""
    t: int | None
    """The step of the output; the last one for a final state."""
    s: int | None
    """The step of the input. For a parameter: the steps s to t, run alone from the state before
    them, have the wrong gradient already, and fewer do not. None for an initial state, and for a
    value."""
    sequence: int | None
    """The row of the batch, where a value is wrong."""
    expected: float
    """The right number. A derivative is one along random directions of both tensors."""
    found: float
    """What the module gave instead."""

    @property
    def error(self) -> float:
        """The absolute error."""
        return abs(self.found - self.expected)

    @property
    def relative_error(self) -> float:
        """The error relative to the expected number; infinite if that is zero."""
        return self.error / abs(self.expected) if self.expected else float("inf")

    def __str__(self) -> str:
        """Name the place, and give both numbers."""
        at = "" if self.t is None else f"[t={self.t}]"
        at += "" if self.sequence is None else f" of sequence {self.sequence}"
        what = self.of + at
        if self.by is not None:
            step = "" if self.s is None else f"[s={self.s}]"
            what = f"d {what} / d {self.by}{step}"
        sizes = f"error {self.error:.2g}, relative {self.relative_error:.2g}"
        return f"{what}: expected {self.expected:.6g}, found {self.found:.6g} ({sizes})"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    verdict: Verdict
    says: str
    """What was compared, why it does not apply, or what is wrong."""
    problem: WrongNumber | None = None
    """The first wrong number; None where nothing is wrong or no number says what is."""


def passed(name: str, says: str) -> Check:
    return Check(name, "passed", says)


def skipped(name: str, why: str) -> Check:
    return Check(name, "does not apply", why)


def wrong(name: str, says: str, problem: WrongNumber | None = None) -> Check:
    return Check(name, "wrong", says if problem is None else f"{problem}; {says}", problem)


@dataclass(frozen=True)
class ModuleCheck:
    """The result of :func:`bptt.check_module`: true if nothing is wrong, and a table as text."""

    module: str
    """The module's class and arguments."""
    steps: int
    """T of the inputs."""
    batch: int | None
    """B of the inputs; None if they have no batch."""
    precision: str
    """The dtype in which the module was run, and why not in double precision if it was not."""
    checks: tuple[Check, ...]
    """The lines of the table, in the order in which they ran."""
    seconds: float
    """How long all of it took."""

    def __bool__(self) -> bool:
        """Whether no check found anything wrong."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[Check, ...]:
        """The checks that found something wrong."""
        return tuple(c for c in self.checks if c.verdict == "wrong")

    @property
    def problem(self) -> WrongNumber | None:
        """The first wrong number of the first check that is wrong; None if there is none."""
        return next((c.problem for c in self.wrong if c.problem is not None), None)

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name.

        Raises:
            KeyError: there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        names = ", ".join(c.name for c in self.checks)
        raise KeyError(f"no check is called {name!r}; there are: {names}")

    def assert_ok(self) -> None:
        """Raise an error if anything is wrong.

        Raises:
            AssertionError: something is; it holds the table.
        """
        if not self:
            raise AssertionError(f"\n{self}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, strings and numbers."""
        found: dict[str, Any] = asdict(self)
        return {**found, "checks": list(found["checks"]), "ok": bool(self)}

    def __str__(self) -> str:
        """Lay the checks out as a table."""
        counts = [sum(c.verdict == v for c in self.checks) for v in ("passed", "wrong")]
        rest = len(self.checks) - sum(counts)
        size = f"{self.steps} steps" + ("" if self.batch is None else f" of {self.batch} sequences")
        head = (
            f"{self.module}: {size}, {self.precision}; {self.seconds:.1f} s\n"
            f"{counts[0]} passed, {counts[1]} wrong, {rest} do not apply\n"
        )
        wide = max(len(c.name) for c in self.checks)
        indent = " " * (18 + wide)
        lines = [
            textwrap.fill(
                c.says,
                width=110,
                initial_indent=f"{c.verdict:<14}  {c.name:<{wide}}  ",
                subsequent_indent=indent,
            )
            for c in self.checks
        ]
        return head + "\n".join(lines)
