"""Spelling of credits: ``full``, ``truncated:35``, ``truncated:every=10,reach=35``..."""

from __future__ import annotations

import ast
import re
from typing import Any

from bptt._src.by_name import imported, is_dotted, one_line
from bptt._src.credit.adaptive import Adaptive
from bptt._src.credit.credit import Credit
from bptt._src.credit.full import Full
from bptt._src.credit.online import Online
from bptt._src.credit.randomized import Randomized
from bptt._src.credit.truncated import Truncated
from bptt.errors import BpttError, ConfigError

KINDS: dict[str, type[Credit]] = {
    "full": Full,
    "truncated": Truncated,
    "randomized": Randomized,
    "adaptive": Adaptive,
    "online": Online,
}

_COMMA = re.compile(r",(?![^(\[]*[)\]])")  # except within brackets

_HOW = (
    "use full, truncated:35, truncated:every=10,reach=35, randomized:35, adaptive:0.1, online, or "
    "your own as module.Class:arguments"
)


def parse(spelling: str) -> Credit:
    """Parse the spelling of a credit on the command line.

    The spelling is a name, followed by a colon and the arguments: the first may be a value alone,
    the others are ``name=value``. A name with a dot is your own class, in an importable module.

    Raises:
        ConfigError: there is no such credit, or its arguments are wrong.

    >>> parse("truncated:every=10,reach=35")
    Truncated(every=10, reach=35)
    >>> parse("randomized:35,tail=constant").spelling
    'randomized:35,tail=constant'
    """
    name, _, rest = spelling.strip().partition(":")
    kind = KINDS.get(name.lower()) or _import(name, spelling)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in filter(None, _COMMA.split(rest)):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals:
            positional.append(_value(part))
        elif key in named:
            raise ConfigError(f"credit {spelling!r} has {key}= twice: give it once")
        else:
            named[key] = _value(value)
    try:
        return kind(*positional, **named)
    except BpttError:
        raise
    except TypeError as e:
        reason = str(e).replace("__init__()", kind.__name__).split(kind.__name__ + ".")[-1]
        raise ConfigError(f"credit {spelling!r}: {one_line(reason)}; {_HOW}") from None
    except Exception as e:  # a user's own class may raise anything
        raise ConfigError(
            f"credit {spelling!r} cannot be made, {type(e).__name__}: {one_line(e)}"
        ) from e


def as_credit(given: Any) -> Any:
    """Return a credit as it is, and parse the spelling of one.

    Raises:
        ConfigError: the spelling is wrong.
        TypeError: it is neither a credit nor a spelling.

    >>> as_credit("truncated:20")
    Truncated(20)
    """
    credit = parse(given) if isinstance(given, str) else given
    if isinstance(credit, int) and not isinstance(credit, bool):
        raise TypeError(f"expected a credit, got {credit!r}: is bptt.Truncated({credit}) meant?")
    if isinstance(credit, type) or not hasattr(credit, "plan"):
        raise TypeError(
            "expected a credit, such as bptt.Truncated(20), its spelling, 'truncated:20', or an "
            f"object that has its plan(), got {given!r}"
        )
    return credit


def is_own(spelling: str) -> bool:
    """Whether it names a user's own class, which is imported when parsed."""
    return "." in spelling.partition(":")[0]


def _import(name: str, spelling: str) -> type[Credit]:
    if not is_dotted(name):
        raise ConfigError(f"unknown credit {spelling!r}; {_HOW}")
    found = imported(name, f"credit {spelling!r}")
    if not (isinstance(found, type) and issubclass(found, Credit)) or found.plan is Credit.plan:
        raise ConfigError(
            f"credit {spelling!r}: {name} must be a class derived from bptt.Credit with a method "
            f"plan(self, steps, batch=1, generator=None), got {one_line(repr(found))}"
        )
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
