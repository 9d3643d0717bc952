"""Pytrees of tensors, as used for inputs, outputs and recurrent states.

Nodes are tuples, named tuples, lists, dictionaries and dataclasses, and every class that is
registered with torch (``torch.utils._pytree``) or with optree.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

Leaf = Any
"""A tensor, or any other object that is not a node."""

_NAMESPACE = "bptt"  # optree's namespace for the classes registered here
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, np.generic,
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip
_LEAVES = (Tensor, *_PLAIN)
_lock = threading.Lock()
_registered: set[type] = set()


def flatten(tree: Any) -> tuple[list[Leaf], Callable[[list[Leaf]], Any]]:
    """Flatten a pytree; return its leaves and a function that rebuilds it from new ones."""
    leaves, spec = optree.tree_flatten(tree, none_is_leaf=True, namespace=_NAMESPACE)
    if _register_types(leaves):
        return flatten(tree)
    return leaves, spec.unflatten


def leaves_of(tree: Any) -> list[Leaf]:
    """Return the leaves of a pytree."""
    if isinstance(tree, Tensor):
        return [tree]
    leaves = optree.tree_leaves(tree, none_is_leaf=True, namespace=_NAMESPACE)
    return leaves_of(tree) if _register_types(leaves) else leaves


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of a pytree."""
    return [v for v in leaves_of(tree) if isinstance(v, Tensor)]


def named_leaves(tree: Any) -> list[tuple[str, Leaf]]:
    """Return the leaves with their paths: ``"h"``, ``"layers.0.c"``; ``""`` for a single leaf."""
    leaves_of(tree)  # registers its types
    accessors, leaves, _ = optree.tree_flatten_with_accessor(
        tree, none_is_leaf=True, namespace=_NAMESPACE
    )
    places = [".".join(str(getattr(e, "field", e.entry)) for e in a) for a in accessors]
    return list(zip(places, leaves, strict=True))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to each tensor of a pytree and leave everything else unchanged."""
    if isinstance(tree, Tensor):
        return function(tree)
    leaves, rebuild = flatten(tree)
    return rebuild([function(x) if isinstance(x, Tensor) else x for x in leaves])


def is_float(leaf: Leaf) -> bool:
    """Whether gradients can flow through a leaf."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def check_leaves(tree: Any, where: str, what: str) -> None:
    """Refuse a leaf that is neither a tensor nor a plain value: it may hide tensors.

    Plain values are None, numbers, strings, bytes, enumerations, dtypes, devices and shapes.

    Args:
        tree: the pytree.
        where: the function that the message names.
        what: what the pytree is, for the message, such as ``"the state"``.

    Raises:
        TypeError: there is such a leaf.
    """
    for leaf in leaves_of(tree):
        if not isinstance(leaf, _LEAVES):
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise TypeError(
                f"{where}: {what} contains an object of type {kind}, whose tensors cannot be "
                "seen; make it a tuple, a dictionary or a dataclass, or register its type with "
                "torch.utils._pytree.register_pytree_node"
            )


# ------------------------------------------------------------------------------- registration


def _register_types(leaves: list[Leaf]) -> bool:
    """Register the types of leaves that can be nodes; return whether there were any."""
    found = False
    for leaf in leaves:
        kind = type(leaf)
        if kind is Tensor or kind in _PLAIN:  # a quick test for most of them
            continue
        if not isinstance(leaf, _LEAVES) and _is_node(kind):
            _register(kind)
            found = True
    return found


def _is_node(kind: type) -> bool:
    if kind in torch_pytree.SUPPORTED_NODES:
        return True
    special = (type, nn.Module, dict, list, tuple)
    return dataclasses.is_dataclass(kind) and not issubclass(kind, special)


def _register(kind: type) -> None:
    known = torch_pytree.SUPPORTED_NODES.get(kind)
    with _lock:
        if kind in _registered:
            return
        to: Any = _attributes
        back = _with_attributes(kind)
        if known is not None:
            to, back = known.flatten_fn, _reordered(known.unflatten_fn)
        optree.register_pytree_node(kind, to, back, namespace=_NAMESPACE)
        _registered.add(kind)


def _attributes(instance: Any) -> tuple[list[Any], tuple[str, ...], tuple[str, ...]]:
    """Flatten a dataclass: its fields, and any other attributes assigned to it."""
    names = [f.name for f in dataclasses.fields(instance) if hasattr(instance, f.name)]
    names += [name for name in getattr(instance, "__dict__", ()) if name not in names]
    return [getattr(instance, name) for name in names], tuple(names), tuple(names)


def _with_attributes(kind: type) -> Callable[[Any, Any], Any]:
    def rebuild(names: tuple[str, ...], values: Any) -> Any:
        instance: Any = object.__new__(kind)  # as copy.copy does: __post_init__ has run before
        for name, value in zip(names, values, strict=True):
            object.__setattr__(instance, name, value)  # frozen ones too
        return instance

    return rebuild


def _reordered(unflatten: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda context, children: unflatten(list(children), context)
