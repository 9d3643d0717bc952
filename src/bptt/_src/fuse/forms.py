"""The form of a pytree as plain tuples, which torch.compile can take apart and put together.

A form is one of these, a tensor's number and any other value at its leaves:

    ("tensor", number)             ("value", value)
    ("tuple", forms)               ("list", forms)            ("dict", forms, keys)
    ("named", forms, class)        ("dataclass", forms, class, names)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bptt._src.pytree import leaves_of

Form = tuple[Any, ...]


def form_of(tree: Any) -> Form | None:
    """Return the form of a pytree; None if it has nodes of another kind, or another order."""
    tensors: list[Tensor] = []
    form = _form_of(tree, tensors)
    in_order = [v for v in leaves_of(tree) if isinstance(v, Tensor)]
    same = len(tensors) == len(in_order) and all(map(_is, tensors, in_order))
    return form if same else None


def _is(a: object, b: object) -> bool:
    return a is b


def _form_of(tree: Any, tensors: list[Tensor]) -> Form | None:
    kind = type(tree)
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return "tensor", len(tensors) - 1
    if kind is dict:
        keys = sorted(tree) if all(isinstance(k, str) for k in tree) else list(tree)
        return _node("dict", [tree[k] for k in keys], tensors, tuple(keys))
    if kind is tuple or kind is list:
        return _node(kind.__name__, tree, tensors)
    if isinstance(tree, tuple) and hasattr(kind, "_fields"):
        return _node("named", tree, tensors, kind)
    if dataclasses.is_dataclass(tree):
        fields = dataclasses.fields(tree)
        names = tuple(f.name for f in fields)
        is_plain = all(f.init for f in fields) and not hasattr(tree, "__post_init__")
        if not is_plain or set(getattr(tree, "__dict__", names)) != set(names):
            return None
        return _node("dataclass", [getattr(tree, n) for n in names], tensors, kind, names)
    return None if leaves_of(tree) != [tree] else ("value", tree)


def _node(name: str, parts: Sequence[Any], tensors: list[Tensor], *rest: Any) -> Form | None:
    forms = [_form_of(part, tensors) for part in parts]
    return None if None in forms else (name, tuple(forms), *rest)


def take(form: Form, tree: Any, tensors: list[Tensor]) -> bool:
    """Append the tensors of a pytree to a list; return whether it is of this form."""
    kind = form[0]
    if kind == "tensor":
        tensors.append(tree)
        return isinstance(tree, Tensor)
    if kind == "value":
        return bool(type(tree) is type(form[1]) and tree == form[1])
    if kind == "dict":
        keys = form[2]
        if type(tree) is not dict or len(tree) != len(keys) or not all(k in tree for k in keys):
            return False
        parts = [tree[k] for k in keys]
    elif kind == "dataclass":
        if type(tree) is not form[2]:
            return False
        parts = [getattr(tree, n) for n in form[3]]
    else:
        if type(tree) is not (form[2] if kind == "named" else {"tuple": tuple, "list": list}[kind]):
            return False
        parts = [*tree]
    if len(parts) != len(form[1]):
        return False
    return all([take(f, p, tensors) for f, p in zip(form[1], parts, strict=True)])  # noqa: C419


def built(form: Form, tensors: Sequence[Tensor]) -> Any:
    """Return a pytree of this form."""
    kind = form[0]
    if kind == "tensor":
        return tensors[form[1]]
    if kind == "value":
        return form[1]
    parts = [built(f, tensors) for f in form[1]]
    if kind == "list":
        return parts
    if kind == "tuple":
        return tuple(parts)
    if kind == "dict":
        return dict(zip(form[2], parts, strict=True))
    return form[2](*parts) if kind == "named" else form[2](**dict(zip(form[3], parts, strict=True)))
