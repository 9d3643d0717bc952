"""What inputs, outputs and states may be made of, and what is refused."""

from __future__ import annotations

import dataclasses
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from bptt._src.pytree import check_leaves, flatten, leaves_of, map_tensors, named_leaves, tensors_of


@dataclasses.dataclass
class Plain:
    h: Any
    count: int = 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    h: Any
    doubled: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", self.h * 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    h: Any


class Pair(NamedTuple):
    h: Any
    c: Any


class WithTorch:
    def __init__(self, h: Any) -> None:
        self.h = h


class WithOptree(WithTorch):
    pass


class Unknown(WithTorch):
    pass


Point = namedtuple("Point", "x y")
torch_pytree.register_pytree_node(
    WithTorch, lambda r: ([r.h], None), lambda values, _: WithTorch(*values)
)
optree.register_pytree_node(
    WithOptree, lambda r: ([r.h], None), lambda _, values: WithOptree(*values), namespace="bptt"
)

x = torch.arange(3.0)
TREES = [
    x,
    (x, [x, None]),
    {"b": x, "a": 2, None: x, 3: "word"},
    {object(): x, object(): x},
    OrderedDict(b=x, a=x),
    defaultdict(list, a=x),
    deque([x, x]),
    Pair(x, (x,)),
    Point(x, 1.5),
    Plain(x),
    Frozen(x),
    Slotted((x, Plain(x))),
    WithTorch(x),
    WithOptree([x]),
    {"layers": [Plain(WithTorch(Pair(x, x))), Slotted(x)]},
]


@pytest.mark.parametrize(
    "tree", TREES, ids=[f"{n}-{type(t).__name__}" for n, t in enumerate(TREES)]
)
def test_all_of_these_are_looked_into_and_come_back(tree: Any) -> None:
    leaves, rebuild = flatten(tree)
    check_leaves(tree, "here", "the state")
    assert tensors_of(tree)
    again = rebuild(leaves)
    assert type(again) is type(tree)
    assert all(a is b for a, b in zip(leaves_of(again), leaves, strict=True))
    more = map_tensors(lambda v: v + 1, tree)
    assert all(
        torch.equal(v, w + 1) for v, w in zip(tensors_of(more), tensors_of(tree), strict=True)
    )
    assert [type(v) for v in leaves_of(more)] == [type(v) for v in leaves]


def test_what_a_dataclass_has_besides_its_fields_is_kept() -> None:
    state = Plain(x)
    state.more = x * 5  # type: ignore[attr-defined]
    found = map_tensors(torch.zeros_like, state)
    assert found.count == 3
    assert not found.h.any()
    assert not found.more.any()


def test_places() -> None:
    tree = {"layers": [Plain(Pair(x, x)), x]}
    assert [place for place, _ in named_leaves(tree)] == [
        "layers.0.h.h", "layers.0.h.c", "layers.0.count", "layers.1",
    ]  # fmt: skip
    assert named_leaves(x)[0][0] == ""


@pytest.mark.parametrize(
    "leaf", [Unknown(x), types.SimpleNamespace(h=x), torch.nn.Linear(1, 1), x.numpy(), print, {1}]
)
def test_anything_else_is_refused_by_name(leaf: Any) -> None:
    with pytest.raises(TypeError, match=f"here: the state contains.*{type(leaf).__name__}.*regist"):
        check_leaves((x, [leaf]), "here", "the state")


def test_plain_values_are_none_of_this() -> None:
    values = [None, True, 1, 1.5, 1j, "a", b"a", torch.float32, torch.device("cpu"), x.shape]
    check_leaves(values, "here", "the state")
    assert leaves_of(values) == values
    assert not any(isinstance(v, Tensor) for v in leaves_of(values))
