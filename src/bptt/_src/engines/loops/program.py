"""A program of the native library's: instructions on rows, and the places that they work on.

What the fields of a call mean is in ``engines/csrc/bptt_kernels.h``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from bptt._src.engines import threads
from bptt._src.engines.guard import address
from bptt._src.engines.kernel_library import library

_ROWS, _STATE, _BETWEEN, TEMPORARY, _PART = range(5)
_PLACE = struct.Struct("=7q")
_WEIGHT = struct.Struct("=5q")
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
        packed = (ctypes.c_int64 * (5 * len(code)))(*(n for line in code for n in line))
        return Program(
            tuple(places), wholes, packed, len(code), len(states), tuple(self.weights), constants
        )


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
    code: ctypes.Array[ctypes.c_int64]
    instructions: int
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
        tensors = {**self.constants, **tensors}
        places = bytearray()
        for i, v in enumerate(self.places):
            if v.kind == _ROWS:
                t = tensors[v.name]
                row = 0 if v.is_vector else t.stride(0)
                data = address(t) + v.offset * t.element_size()
                places += _PLACE.pack(_ROWS, v.width, row, 0, 0, data, 0)
            elif v.kind == _STATE:
                before, after = states[int(v.name)]
                places += _PLACE.pack(_STATE, v.width, 0, 0, 0, address(before), address(after))
            else:
                whole = self.wholes.get(i, 0)
                places += _PLACE.pack(v.kind, v.width, 0, whole, v.offset, 0, 0)
        weights = bytearray()
        for w in self.weights:
            t = tensors[w.name]
            depth, columns = t.shape[::-1] if w.is_transposed else t.shape
            weights += _WEIGHT.pack(depth, columns, t.stride(0), w.is_transposed, address(t))
        own = bytes(places), bytes(weights), (ctypes.c_int64 * len(sizes))(*sizes)
        call = _LOOP.pack(
            *(type_, threads.allowed(), last_first, len(sizes), sizes[0], ctypes.addressof(own[2])),
            *(self.states, len(self.places), _start(own[0])),
            *(self.instructions, ctypes.addressof(self.code)),
            *(len(self.weights), _start(own[1])),
            *(
                0 if t is None else address(t)
                for t in (zero_before, factors_after, zero_after, norms)
            ),
        )
        if library().bptt_run_loop(call) != 0:
            raise MemoryError(f"bptt: no memory for the work space of {sizes[0]} sequences")


def _start(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
