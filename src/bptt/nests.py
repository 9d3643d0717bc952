"""Nests of tensors: tuples, lists and dictionaries of them, as a recurrent state may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Leaf = Any
"""A tensor, or anything else that is neither tuple, list nor dictionary."""


def flatten(nest: Any) -> tuple[list[Leaf], Callable[[list[Leaf]], Any]]:
    """Give the leaves of a nest, and what puts others in their places."""
    leaves, spec = pytree.tree_flatten(nest)
    return leaves, lambda new: pytree.tree_unflatten(new, spec)


def leaves_of(nest: Any) -> list[Leaf]:
    """Give the leaves of a nest."""
    return pytree.tree_leaves(nest)


def map_tensors(function: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """Apply a function to each tensor of a nest and leave everything else as it is."""
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, nest)


def is_float(leaf: Leaf) -> bool:
    """Whether gradients can flow through it."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
