"""What has been found: each with its state, what it costs and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "note", "missing", "broken"]
STATES: tuple[State, ...] = ("ok", "note", "missing", "broken")
"""The worse the later: as it should be; worth knowing; not installed; does not work."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    name: str
    """In one word, as ``"kernels"``."""
    state: State
    says: str
    """What was found."""
    costs: str | None = None
    """What does not work, or works worse."""
    remedy: str | None = None
    """What to do, if there is something."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The same in parts, for JSON."""

    def lines(self) -> Iterator[str]:
        """Yield what is to be read of it, a line each."""
        yield self.says
        if self.costs:
            yield self.costs
        if self.remedy:
            yield f"To do: {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        said = {"state": self.state, "says": self.says, "costs": self.costs, "remedy": self.remedy}
        return {"name": self.name, **said, "figures": self.figures}


@dataclass(frozen=True)
class Checkup:
    """Everything that was looked at."""

    findings: Sequence[Diagnosis]

    @property
    def state(self) -> State:
        """The worst of all."""
        return max((f.state for f in self.findings), key=STATES.index, default="ok")

    def named(self, state: State) -> list[str]:
        """Return the names of those in a state."""
        return [f.name for f in self.findings if f.state == state]

    def verdict(self) -> str:
        """Return a line on whether something has to be done.

        >>> Checkup([Diagnosis("torch", "ok", "2.13.0")]).verdict()
        'Everything works.'
        >>> found = [Diagnosis("bptt[onnx]", "missing", ""), Diagnosis("kernels", "broken", "")]
        >>> Checkup(found).verdict()
        'Broken: kernels. Missing: bptt[onnx].'
        """
        found = [(word, self.named(word)) for word in ("broken", "missing")]
        said = [f"{word.capitalize()}: {', '.join(names)}." for word, names in found if names]
        if not self.named("broken"):
            said.insert(0, "Everything works." if not said else "What is installed works.")
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        found = [f.to_dict() for f in self.findings]
        return {"state": self.state, "verdict": self.verdict(), "findings": found}

    def __str__(self) -> str:
        """Write all of it for reading, without control characters."""
        wide = max((len(f.name) for f in self.findings), default=0)
        margin = " " * (9 + wide + 2)
        texts = [
            f"{f.state:<9}{f.name:<{wide}}  " + f"\n{margin}".join(map(_harmless, f.lines()))
            for f in self.findings
        ]
        return "\n".join([*texts, "", self.verdict()])


def _harmless(text: str) -> str:
    """Show what a terminal would obey as Python escapes it; paths may hold such characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
