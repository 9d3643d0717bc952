"""The options of ``bptt train``, made from the fields of Config: each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from bptt._src.language_model.config import Config, fields_by_name
from bptt._src.language_model.requirements import TOGETHER
from bptt.errors import spell_options


def with_options(
    offered: Sequence[inspect.Parameter],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to a command, which takes those that were given as its argument ``options``."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(function).parameters.values()
        every = [*(p for p in parameters if p.name != "options"), *offered]

        def command(**given: Any) -> None:
            options = {p.name: given.pop(p.name) for p in offered}
            options = {
                n: tuple(v) if isinstance(v, list) else v
                for n, v in options.items()
                if v is not None and v != []
            }
            function(options=options, **given)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in every}
        return command

    return decorate


def with_config_options(
    *leave_out: str,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of Config to a command, except those that it declares itself."""
    return with_options([_parameter(n) for n in fields_by_name() if n not in leave_out])


def _parameter(name: str) -> inspect.Parameter:
    """One option of Config; None, or empty, where it was not given."""
    field, hint = fields_by_name()[name], _HINTS[name]
    flag = "--" + name.replace("_", "-")
    flags = [f for f in (flag, field.metadata["flag"]) if f]
    help, metavar = field.metadata["help"], None
    if get_origin(hint) is Literal:
        help, metavar = f"{help}: {', '.join(get_args(hint))}", name.upper()
    if hint is bool:
        flags = [f"{flag}/--no-{flag[2:]}"]
    elif field.default not in (None, ()):
        help += f" (default: {field.default})"
    if name in TOGETHER:
        with spell_options():
            help += f" ({TOGETHER[name].hint})"
    tuples = [k for k in (hint, *get_args(hint)) if get_origin(k) is tuple]
    several = get_args(tuples[0])[0] if tuples else None
    option = typer.Option(
        *flags,
        help=help,
        metavar=metavar,
        show_default=False,
        rich_help_panel=field.metadata["group"],
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=[] if several else None,
        annotation=Annotated[GenericAlias(list, several) if several else hint | None, option],
    )


_HINTS = get_type_hints(Config)
