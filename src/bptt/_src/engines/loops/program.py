"""A program of the native library's: instructions on rows, and the places that they work on.

What the fields of a call mean is in ``engines/csrc/bptt_kernels.h``.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.guard import address
from bptt._src.engines.kernel_library import library

_ROWS, _STATE, _BETWEEN, TEMPORARY, _PART = range(5)
_ROW, _DATA, _LAST = 2, 5, 6
"""Of the seven numbers of a place."""
_LOOP = struct.Struct("=17q")


@dataclass(eq=False)
class Value:
    """What an instruction reads or makes: so many columns of each row."""

    width: int
    kind: int = TEMPORARY
    name: str = ""
    """ROWS: of the tensor. A state's is its number."""
    offset: int = 0
    """ROWS: the first column; PART: of the whole."""
    is_vector: bool = False
    """ROWS: whether it is one row for all."""
    whole: Value | None = None

    def part(self, offset: int, width: int) -> Value:
        """Return some of its columns."""
        if (offset, width) == (0, self.width):
            return self
        if self.kind == _ROWS:
            return Value(width, _ROWS, self.name, self.offset + offset, self.is_vector)
        if self.kind == _PART:
            return Value(width, _PART, "", self.offset + offset, whole=self.whole)
        return Value(width, _PART, "", offset, whole=self)

    @property
    def storage(self) -> Value:
        return self.whole or self


def rows(name: str, width: int, offset: int = 0) -> Value:
    """Return columns of a tensor of N rows."""
    return Value(width, _ROWS, name, offset)


def vector(name: str, width: int, offset: int = 0) -> Value:
    """Return columns of a tensor of one row, the same for all."""
    return Value(width, _ROWS, name, offset, is_vector=True)


def state(number: int, width: int) -> Value:
    """Return a state, from step to step."""
    return Value(width, _STATE, str(number))


@dataclass(frozen=True)
class Weight:
    """The right side of a product: a matrix by its name, or its transpose."""

    name: str
    is_transposed: bool


@dataclass
class Writer:
    """What writes a program down."""

    code: list[tuple[str, Value, tuple[Value | int, ...]]] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    constants: list[tuple[float, int]] = field(default_factory=list)

    def emit(self, op: str, to: Value, *operands: Value) -> Value:
        """Write an instruction."""
        self.code.append((op, to, operands))
        return to

    def product(self, to: Value, left: Value, weight: Weight) -> Value:
        """Write to = left W."""
        if weight not in self.weights:
            self.weights.append(weight)
        self.code.append(("product", to, (left, self.weights.index(weight), 0)))
        return to

    def constant(self, number: float, width: int) -> Value:
        """Return a vector of one number."""
        for i, (n, w) in enumerate(self.constants):
            if w >= width and repr(n) == repr(number):
                return vector(f"constant {i}", width)
        self.constants.append((number, width))
        return vector(f"constant {len(self.constants) - 1}", width)

    def program(self, states: Sequence[int], dtype: torch.dtype) -> Program:
        """Find a place for all that it works on."""
        _settle(self.code)
        places: list[Value] = [state(i, width) for i, width in enumerate(states)]
        numbers: dict[object, int] = {(_STATE, str(i)): i for i in range(len(states))}

        def number(v: Value) -> int:
            if v.kind == _PART:
                assert v.whole is not None
                key: object = (number(v.whole), v.offset, v.width)
            elif v.kind == _ROWS:
                key = (_ROWS, v.name, v.offset, v.width)
            else:
                key = (_STATE, v.name) if v.kind == _STATE else v
            if key not in numbers:
                numbers[key] = len(places)
                places.append(v)
            return numbers[key]

        code = []
        for op, to, operands in _with_shared_places(self.code):
            given = [x if isinstance(x, int) else number(x) for x in operands]
            code.append((instructions()[op], number(to), *given, *(-1,) * (3 - len(given))))
        constants = {
            f"constant {i}": torch.full((1, width), x, dtype=dtype, device="cpu")
            for i, (x, width) in enumerate(self.constants)
        }
        wholes = {i: numbers[_key_of(v.whole)] for i, v in enumerate(places) if v.whole is not None}
        packed = array("q", [n for line in code for n in line])
        return Program(tuple(places), wholes, packed, len(states), tuple(self.weights), constants)


def _key_of(v: Value) -> object:
    return (_STATE, v.name) if v.kind == _STATE else v


def _settle(code: list[tuple[str, Value, tuple[Value | int, ...]]]) -> None:
    """What is a side of a product, or goes on after one, is of all sequences of a step."""
    segment, made = 0, dict[Value, int]()
    for op, to, operands in code:
        if op == "product":
            segment += 1
        for v in (to, *operands):
            if not isinstance(v, Value):
                continue
            storage = v.storage
            if storage.kind != TEMPORARY:
                continue
            if op == "product" or made.setdefault(storage, segment) != segment:
                storage.kind = _BETWEEN


def _with_shared_places(
    code: list[tuple[str, Value, tuple[Value | int, ...]]],
) -> list[tuple[str, Value, tuple[Value | int, ...]]]:
    """Let what is needed no longer leave its place to others of the same width."""
    last: dict[Value, int] = {}
    for i, (_, to, operands) in enumerate(code):
        for v in (to, *operands):
            if isinstance(v, Value):
                last[v.storage] = i
    free: dict[tuple[int, int], list[Value]] = {}
    place: dict[Value, Value] = {}
    found = []

    def placed(v: Value | int) -> Value | int:
        if isinstance(v, int) or v.storage.kind not in (TEMPORARY, _BETWEEN):
            return v
        storage = v.storage
        if storage not in place:
            idle = free.get((storage.kind, storage.width))
            place[storage] = idle.pop() if idle else Value(storage.width, storage.kind)
        own = place[storage]
        return own if v.whole is None else Value(v.width, _PART, "", v.offset, whole=own)

    for i, (op, to, operands) in enumerate(code):
        given = tuple(placed(v) for v in operands)
        target = placed(to)
        assert isinstance(target, Value)
        found.append((op, target, given))
        for v in {v.storage for v in (to, *operands) if isinstance(v, Value)}:
            if last[v] == i and v in place:
                own = place[v]
                free.setdefault((own.kind, own.width), []).append(own)
    return found


@lru_cache(maxsize=1)
def instructions() -> dict[str, int]:
    """Return the numbers of the library's instructions, by name."""
    found: dict[str, int] = {}
    while (name := library().bptt_instruction_name(len(found))) is not None:
        found[name.decode()] = len(found)
    return found


@dataclass(frozen=True, eq=False)
class Program:
    """A program, to be run on any tensors that have the names and widths of its places."""

    places: tuple[Value, ...]
    wholes: dict[int, int]
    code: array[int]
    states: int
    weights: tuple[Weight, ...]
    constants: dict[str, Tensor]

    def run(
        self,
        tensors: Mapping[str, Tensor],
        states: Sequence[tuple[Tensor, Tensor]],
        sizes: tuple[int, ...],
        *,
        type_: int,
        last_first: bool,
        zero_before: Tensor | None = None,
        factors_after: Tensor | None = None,
        zero_after: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> None:
        """Run it over the steps of a sequence.

        Args:
            tensors: what its places and weights are called by, each dense in its last dimension.
            states: for each state, where it is before the first step, and where it goes after the
                last one, [B, width]; the two may be the same.
            sizes: how many sequences run at each step.
            type_: what it computes in (:func:`engines.kernel_library.type_of`).
            last_first: whether the last step comes first.
            zero_before: bool, [N]: where the states are zero before the step.
            factors_after: of the states after the step, [N].
            zero_after: bool, [N]: where they are zero after the step.
            norms: of the states before the step, to be filled, [N, states] float64.

        Raises:
            MemoryError: there is none.
        """
        places = self._laid_out.places[:]
        for name, of in self._laid_out.rows:
            t = tensors[name]
            data, row, size = address(t), t.stride(0), t.element_size()
            for at, offset, is_vector in of:
                places[at + _ROW] = 0 if is_vector else row
                places[at + _DATA] = data + offset * size
        for at, number in self._laid_out.states:
            before, after = states[number]
            places[at + _DATA], places[at + _LAST] = address(before), address(after)
        weights = array("q")
        for w in self.weights:
            t = tensors[w.name]
            depth, columns = t.shape[::-1] if w.is_transposed else t.shape
            weights.extend((depth, columns, t.stride(0), w.is_transposed, address(t)))
        own = array("q", sizes)
        call = _LOOP.pack(
            *(type_, threads.allowed(), last_first, len(sizes), sizes[0], _start(own)),
            *(self.states, len(self.places), _start(places)),
            *(len(self.code) // 5, _start(self.code)),
            *(len(self.weights), _start(weights)),
            *(
                0 if t is None else address(t)
                for t in (zero_before, factors_after, zero_after, norms)
            ),
        )
        if library().bptt_run_loop(call) != 0:
            raise MemoryError(f"bptt: no memory for the work space of {sizes[0]} sequences")

    @cached_property
    def _laid_out(self) -> _LaidOut:
        places, states = array("q"), list[tuple[int, int]]()
        of_rows: dict[str, list[tuple[int, int, bool]]] = {}
        for i, v in enumerate(self.places):
            at, data = len(places), 0
            if v.kind == _ROWS and v.name in self.constants:
                data = address(self.constants[v.name]) + v.offset * self._element_size
            elif v.kind == _ROWS:
                of_rows.setdefault(v.name, []).append((at, v.offset, v.is_vector))
            elif v.kind == _STATE:
                states.append((at, int(v.name)))
            offset = v.offset if v.kind == _PART else 0
            places.extend((v.kind, v.width, 0, self.wholes.get(i, 0), offset, data, 0))
        return _LaidOut(places, list(of_rows.items()), states)

    @property
    def _element_size(self) -> int:
        return next(iter(self.constants.values())).element_size()


class _LaidOut(NamedTuple):
    """The places of a program as the library takes them, but for what changes from call to call."""

    places: array[int]
    rows: list[tuple[str, list[tuple[int, int, bool]]]]
    """By the name of a tensor: where its places begin, their first columns, and which are one row
    for all."""
    states: list[tuple[int, int]]
    """Where they begin, and their numbers."""


def _start(data: array[int]) -> int:
    return data.buffer_info()[0]
