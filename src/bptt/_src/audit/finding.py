"""A finding: what was seen, where first, what it means and what to write instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


def many(n: int, what: str) -> str:
    """Write a number of things: ``1 call``, ``2 calls``, ``2 passes``."""
    more = "es" if what.endswith("s") else "s"
    return f"{n} {what}" if n == 1 else f"{n} {what}{more}"


@dataclass(frozen=True)
class Finding:
    """Something that an audit has to say.

    Attributes:
        kind: a name for it, such as ``"reset-late"``.
        is_fault: whether it is wrong; otherwise it is so, and may be meant.
        seen: what was seen, in a sentence.
        t: the step of the loss, or of the state, where it was first seen; None: everywhere.
        s: the step that is credited, or held.
        sequence: the sequence.
        means: what follows from it.
        instead: what to write instead.
    """

    kind: str
    is_fault: bool
    seen: str
    t: int | None = None
    s: int | None = None
    sequence: int | None = None
    means: str = ""
    instead: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """Write it in a few lines."""
        rest = [line for line in (self.means, self.instead) if line]
        kind = "fault" if self.is_fault else "fact"
        return "\n  ".join([f"{kind}: {self.kind}: {self.seen}", *rest])
