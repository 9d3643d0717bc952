"""Let the reference pages read docstrings as Python programmers write them.

The pages are Markdown; the docstrings use the few marks that Python's own documentation made
common. This griffe extension turns ``:class:`RNN``` into a link, an introduced block (``::``)
into a plain colon, and an example at the prompt into a fenced block. At the end it says where the
object's source is.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`(?P<short>~?)(?P<name>[\w.]+)`")
LITERAL = re.compile(r"::$", re.MULTILINE)
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring once, when its object has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go through the whole package, now that every name in it can be resolved."""
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring:
        obj.docstring.value = to_markdown(obj.docstring.value, obj) + _source(obj)
    if isinstance(obj, griffe.Class):  # what type checkers alone see hides what is inherited
        for name in [name for name, member in obj.members.items() if not member.runtime]:
            obj.del_member(name)
    for member in obj.members.values():
        if isinstance(member, griffe.Object):  # an alias is another object's
            _rewrite(member)


def to_markdown(text: str, obj: griffe.Object) -> str:
    """Rewrite one docstring; names are looked up from ``obj``."""
    text = ROLE.sub(lambda match: _link(match["name"], bool(match["short"]), obj), text)
    text = LITERAL.sub(":", text)
    return EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


def _source(obj: griffe.Object) -> str:
    if obj.is_attribute:  # it stands within what has a place
        return ""
    line = "" if obj.is_module else f":{obj.lineno}"
    return f"\n\n`src/{obj.relative_package_filepath}{line}`{{: .source}}"


def _link(name: str, short: bool, obj: griffe.Object) -> str:
    shown = name.rsplit(".", 1)[-1] if short else name
    if name.startswith("bptt."):
        return f"[`{shown}`][{name}]"  # must lead somewhere
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        return f"`{shown}`"
    # A name near by may be one that has no entry of its own: then it stays plain.
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
