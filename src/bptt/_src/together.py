"""Options that have an effect only with others: declared in tables, refused in one place.

An option that is accepted and has no effect misleads. So each command, and
:class:`bptt.language_model.Config`, has a table of what each option requires, from which the
refusals, the help's hints and the tests are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bptt.errors import ConfigError, spelled

Table = Mapping[str, "Only | With | Without | Every"]
Read = Callable[[str], Any]
"""Returns the value of an option by its name."""


@dataclass(frozen=True)
class Only:
    """An option that has an effect only for some values of another one."""

    option: str
    values: tuple[Any, ...]

    def holds(self, read: Read) -> bool:
        """Whether the option has an effect."""
        return read(self.option) in self.values

    def refusal(self, given: str, read: Read) -> str:
        """Return why the option cannot be given."""
        wanted = " or ".join(spelled(self.option, v) for v in self.values)
        return f"{given} is for {wanted}, got {spelled(self.option, read(self.option))}"

    @property
    def hint(self) -> str:
        """Return the rule as a hint for the option's help."""
        return "only with " + " or ".join(spelled(self.option, v) for v in self.values)


@dataclass(frozen=True)
class With:
    """An option that has no effect unless one of others is given."""

    options: tuple[str, ...]

    def holds(self, read: Read) -> bool:
        """Whether the option has an effect."""
        return any(_is_given(read(o)) for o in self.options)

    def refusal(self, given: str, read: Read) -> str:
        """Return why the option cannot be given."""
        return f"{given} has no effect without {_listed(self.options)}"

    @property
    def hint(self) -> str:
        """Return the rule as a hint for the option's help."""
        return f"only with {_listed(self.options)}"


@dataclass(frozen=True)
class Without:
    """An option that has no effect together with another."""

    option: str

    def holds(self, read: Read) -> bool:
        """Whether the option has an effect."""
        return not _is_given(read(self.option))

    def refusal(self, given: str, read: Read) -> str:
        """Return why the option cannot be given."""
        return f"{given} has no effect beside {spelled(self.option)}"

    @property
    def hint(self) -> str:
        """Return the rule as a hint for the option's help."""
        return f"not with {spelled(self.option)}"


class Every:
    """Several rules, all of which must hold."""

    def __init__(self, *rules: Only | With | Without) -> None:
        self.rules = rules

    def holds(self, read: Read) -> bool:
        """Whether the option has an effect."""
        return all(rule.holds(read) for rule in self.rules)

    def refusal(self, given: str, read: Read) -> str:
        """Return why the option cannot be given: by the first rule that does not hold."""
        return next(r.refusal(given, read) for r in self.rules if not r.holds(read))

    @property
    def hint(self) -> str:
        """Return the rules as a hint for the option's help."""
        return ", ".join(rule.hint for rule in self.rules)


def check_together(table: Table, given: Iterable[str], read: Read) -> None:
    """Refuse options that have no effect.

    Args:
        table: the requirements of each option.
        given: the names of the options that were given.
        read: returns the value of any option, given or not.

    Raises:
        ConfigError: an option has no effect; the message says what is missing.
    """
    for name in given:
        rule = table.get(name)
        if rule is not None and not rule.holds(read):
            value = read(name)
            said = spelled(name, value if isinstance(value, str | int | float) else None)
            raise ConfigError(f"{rule.refusal(said, read)}: leave {spelled(name)} out")


def _is_given(value: Any) -> bool:
    return value not in (None, False, (), [])


def _listed(options: Iterable[str]) -> str:
    return " or ".join(spelled(o) for o in options)
