"""Calling a backward pass that somebody wrote, and saying in plain words what it returned wrongly.

NumPy only.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt._src.explain.exercise import Exercise, Floats
from bptt._src.explain.solving import is_single

LETTERS = {"U": "[H, C]", "W": "[H, H]", "V": "[C, H]", "b": "[H]", "c": "[C]"}


@dataclass(frozen=True)
class Problem:
    """Something about a call or what it returned that leaves nothing to compare."""

    kind: str
    """A short name: ``returned-nothing``, ``shape``, ``not-finite``..."""
    text: str
    """What is wrong and what to do, in one line."""
    parameter: str | None = None
    """The parameter, if it is about one."""


@dataclass(frozen=True)
class Returned:
    """What a function returned for all sentences."""

    gradients: dict[str, Floats]
    """The gradients that can be compared, [N, ...]."""
    is_single: bool
    """Whether they were computed in numbers of 4 bytes or less."""
    problems: tuple[Problem, ...]
    """What is wrong with the others, or with the calls."""
    notes: tuple[str, ...]
    """What was done that need not be wrong: another order of the gradients."""


class _Unusable(Exception):
    """What was returned cannot be compared at all."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(kind, text)


def as_function(given: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return ``(x, y, *weights) -> gradients`` from a function, or an object with ``bptt(x, y)``.

    Raises:
        TypeError: it is neither, or takes other arguments.
    """
    expected = f"function(x, y, {', '.join(names)})"
    if inspect.isclass(given):
        raise TypeError(
            f"check_backward: got the class {given.__name__}; give an instance, as "
            f"{given.__name__}(word_dim=7, hidden_dim=6, bptt_truncate=None)"
        )
    if all(hasattr(given, name) for name in ("U", "V", "W", "bptt")):
        return _of_model(given, names)
    if not callable(given):
        raise TypeError(
            f"check_backward: expected {expected}, or an object with U, W, V and bptt(x, y), got "
            f"{given!r}"
        )
    try:
        inspect.signature(given).bind(*range(2 + len(names)))
    except ValueError:  # a function without a signature, written in C
        return given  # type: ignore[no-any-return]
    except TypeError as error:
        raise TypeError(
            f"check_backward: calls {expected}, but the function has the arguments "
            f"{inspect.signature(given)}; wrap it in one that has these"
            + ("" if "b" in names else " (bias=True adds b and c)")
        ) from error
    return given  # type: ignore[no-any-return]


def _of_model(model: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    activation = type(getattr(model, "activation", None)).__name__
    if activation not in ("Tanh", "NoneType"):
        raise ValueError(
            f"check_backward: the model's activation is {activation}; the mistakes are those of "
            "tanh, so give it activation=Tanh()"
        )
    if len(names) > 3:
        raise TypeError("check_backward: bias=True is for functions; a model has U, W and V alone")

    def bptt(x: Any, y: Any, U: Floats, W: Floats, V: Floats) -> Any:
        own = copy.copy(model)
        own.U, own.W, own.V = U, W, V
        own.hidden_dim, own.word_dim = U.shape
        return own.bptt(x, y)

    return bptt


def call(function: Callable[..., Any], sentences: Exercise) -> Returned:
    """Call a function on each sentence, and check what it returns.

    An exception in the function is the caller's to see: it is not caught.
    """
    names = tuple(sentences.weights)
    found, notes, problems = [], dict[str, None](), dict[str | None, Problem]()
    try:
        for n in range(len(sentences.x)):
            arguments = _arguments(sentences, n)
            returned = _once(function, arguments, names)
            if n == 0:
                _compare_second_call(function, _arguments(sentences, n), names, returned)
            gradients, note = _by_name(returned, names, [a.shape for a in arguments[2:]])
            notes |= dict.fromkeys(note)
            for name in names:
                problem = _problem_of(name, gradients[name], sentences.weights[name][n].shape, n)
                if problem and name not in problems:
                    problems[name] = problem
            found.append(gradients)
    except _Unusable as error:
        return Returned({}, False, (error.problem,), tuple(notes))
    usable = [name for name in names if name not in problems]
    arrays = [gradients[name] for gradients in found for name in usable]
    of_each = {name: np.stack([g[name].astype(np.float64) for g in found]) for name in usable}
    return Returned(of_each, is_single(arrays), tuple(problems.values()), tuple(notes))


def _arguments(sentences: Exercise, n: int) -> list[NDArray[Any]]:
    weights = (w[n].copy() for w in sentences.weights.values())
    return [sentences.x[n].copy(), sentences.y[n].copy(), *weights]


def _once(
    function: Callable[..., Any], arguments: list[NDArray[Any]], names: tuple[str, ...]
) -> Any:
    before = [a.copy() for a in arguments]
    returned = function(*arguments)
    changed = [
        name
        for name, a, b in zip(("x", "y", *names), arguments, before, strict=True)
        if a.shape != b.shape or not np.array_equal(a, b)
    ]
    if changed:
        raise _Unusable(
            "changed-in-place",
            f"The function changes {', '.join(changed)}, which it was given, in place; work on a "
            "copy, and leave the step of gradient descent out",
        )
    return copy.deepcopy(returned)  # it may be a buffer that the next call fills anew


def _compare_second_call(
    function: Callable[..., Any],
    arguments: list[NDArray[Any]],
    names: tuple[str, ...],
    first: Any,
) -> None:
    """Refuse a function that gives another result for the same arguments."""
    shapes = [a.shape for a in arguments[2:]]
    one, _ = _by_name(first, names, shapes)
    two, _ = _by_name(_once(function, arguments, names), names, shapes)
    pairs = [(np.asarray(one[name]), np.asarray(two[name])) for name in names]
    if all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        return
    if any(a.shape == b.shape and a.any() and np.allclose(2 * a, b) for a, b in pairs):
        raise _Unusable(
            "not-set-to-zero",
            "Called twice with the same arguments, the function returns the double the second "
            "time: its gradients are not set to zero when it begins",
        )
    raise _Unusable(
        "differs-each-call",
        "Called twice with the same arguments, the function returns different gradients: it uses "
        "something that it was not given, such as a global or what the last call left behind",
    )


def _by_name(
    returned: Any, names: tuple[str, ...], shapes: list[tuple[int, ...]]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Name the gradients that were returned; return notes on their order, too."""
    expected = ", ".join(f"d{name}" for name in names)
    if returned is None:
        raise _Unusable(
            "returned-nothing", f"The function returns None; end it with: return {expected}"
        )
    if isinstance(returned, Mapping):
        short = {str(key).removeprefix("d"): value for key, value in returned.items()}
        missing = [name for name in names if name not in short]
        if missing:
            raise _Unusable(
                "returned-wrongly",
                f"The dictionary that the function returns has the keys {', '.join(short)}; "
                f"{', '.join(missing)} is missing",
            )
        return {name: _array(name, short[name]) for name in names}, []
    if not isinstance(returned, tuple | list) or len(returned) != len(names):
        what = f"{type(returned).__name__}"
        what += f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise _Unusable(
            "returned-wrongly", f"The function returns a {what}; return {len(names)}: {expected}"
        )
    arrays = [_array(name, value) for name, value in zip(names, returned, strict=True)]
    found = [a.shape for a in arrays]
    orders = [
        order
        for order in permutations(range(len(names)))
        if [found[i] for i in order] == shapes
        and order[0] < order[names.index("V")]  # else they may be transposed
    ]
    if found != shapes and len(orders) == 1:
        by_name = {name: arrays[i] for name, i in zip(names, orders[0], strict=True)}
        order = ", ".join(f"d{names[orders[0].index(i)]}" for i in range(len(names)))
        return by_name, [f"The gradients were returned as {order}; their shapes tell them apart."]
    return dict(zip(names, arrays, strict=True)), []


def _array(name: str, value: Any) -> NDArray[Any]:
    found = np.asarray(value)
    if found.dtype.kind not in "fiu":
        raise _Unusable(
            "returned-wrongly",
            f"d{name} is {'an' if found.dtype.kind == 'O' else 'a'} {found.dtype} array; return "
            "floating-point numbers",
        )
    return found


def _problem_of(
    name: str, gradient: NDArray[Any], shape: tuple[int, ...], n: int
) -> Problem | None:
    """Return what leaves nothing to compare in one gradient."""
    got = gradient.shape
    if got != shape:
        text = f"d{name} has the shape {got}, where {name} has {LETTERS[name]} = {shape}"
        if got == shape[::-1]:
            text += "; it is transposed: return .T of it"
        elif tuple(i for i in got if i != 1) == shape:
            text += f"; drop the dimension of 1: .reshape{shape}"
        elif got[1:] == shape or got[:-1] == shape:
            text += "; it is not summed over the steps: sum over that dimension"
        return Problem("shape", text, name)
    if not np.isfinite(gradient).all():
        bad = tuple(map(int, np.argwhere(~np.isfinite(gradient))[0]))
        many = int((~np.isfinite(gradient)).sum())
        return Problem(
            "not-finite",
            f"d{name} has {many} of {gradient.size} entries that are no finite number, the first "
            f"at {list(bad)} ({gradient[bad]}) of sentence {n}; look for a division by zero, an "
            "overflow of exp, or np.empty",
            name,
        )
    return None
