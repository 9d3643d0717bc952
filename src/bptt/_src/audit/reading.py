"""What a call of a recurrent module holds: inputs, the state before and after, and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from bptt._src.layout import declared
from bptt._src.pytree import is_float, map_tensors, tensors_of

STATES = ("hx", "state", "states", "hidden", "hidden_state", "hiddens", "h", "h_0", "h0", "mem")
"""Names of keyword arguments that are taken for the state."""

AUTO = "auto"


@runtime_checkable
class Adaptor(Protocol):
    """How the state is found in the calls of a module that does it in a way of its own."""

    def given(self, *args: Any, **options: Any) -> Any:
        """Return the state, a pytree of tensors, among the arguments of a call."""

    def returned(self, output: Any) -> tuple[Any, Any]:
        """Return the outputs, a tensor, and the state, a pytree, of what a call returned."""


@dataclass
class CallRead:
    """One call, as the audit sees it."""

    x: Any
    """Its first argument."""
    y: Any
    """Its outputs, a tensor; the rows of a PackedSequence; None if it returns the state alone."""
    given: list[Tensor]
    """The tensors of the state before."""
    returned: list[Tensor]
    """Those of the state after it, in the same order."""
    steps: int
    batch: int
    lengths: list[int]
    """The number of steps of each sequence."""
    time: int | None
    """The dimension of time; None if the call is one step."""
    is_unbatched: bool
    packing: tuple[Any, ...] | None = None
    """All but the rows of the PackedSequence that the outputs are."""

    def forget(self) -> None:
        """Let go of all tensors, and their graphs; the layout stays."""
        self.x, self.y, self.given, self.returned = None, None, [], []

    def by_step(self, v: Tensor) -> Tensor:
        """Lay out outputs, or a gradient of theirs, as [T, B, ...]."""
        if self.packing is not None:
            return pad_packed_sequence(PackedSequence(v, *self.packing))[0]
        return self._by_step(v)

    def inputs_by_step(self) -> Any:
        """Lay out the inputs as [T, B, ...]."""
        if isinstance(self.x, PackedSequence):
            return pad_packed_sequence(self.x)[0]
        return map_tensors(self._by_step, self.x)

    def _by_step(self, v: Tensor) -> Tensor:
        if self.time is None:
            return v.unsqueeze(0) if v.dim() and v.shape[0] == self.batch else v.expand(1, 1)
        v = v.unsqueeze(1) if self.is_unbatched else v
        return v.transpose(0, 1) if self.time == 1 and not self.is_unbatched else v

    def by_sequence(self, v: Tensor) -> Tensor:
        """Lay out a tensor of the state, or a gradient of it, as [B, n]."""
        B = self.batch
        if self.is_unbatched:
            return v.reshape(1, -1)
        if v.dim() >= 3 and self.time is not None and v.shape[1] == B:  # [L, B, H]
            return v.transpose(0, 1).reshape(B, -1)
        if v.dim() and v.shape[0] == B:
            return v.reshape(B, -1)
        if v.dim() >= 2 and v.shape[1] == B:
            return v.transpose(0, 1).reshape(B, -1)
        return v.reshape(1, -1).expand(B, -1)  # one for all sequences


class Reader:
    """How the calls of one module are read.

    Args:
        module: the module.
        state: names of attributes of the module, an adaptor, or None: arguments and results.
        time: the dimension of time, None if a call is one step, or "auto".
        is_sequence: whether it surely returns ``(outputs, state)``.
    """

    def __init__(
        self, module: Any, state: Any = None, time: Any = AUTO, is_sequence: bool = False
    ) -> None:
        if not (time is None or time == AUTO or (type(time) is int and time in (0, 1))):
            raise ValueError(
                f"bptt.audit: time must be 0 or 1, the dimension of time, or None if each call is "
                f"one step, got {time!r}"
            )
        self.module, self.time, self.is_sequence = module, time, is_sequence
        names = (state,) if isinstance(state, str) else state
        self.adaptor = None
        self.attributes: tuple[str, ...] = ()
        if isinstance(names, Sequence) and all(isinstance(n, str) for n in names):
            absent = [n for n in names if not hasattr(module, n)]
            if absent:
                raise ValueError(
                    f"bptt.audit: state={state!r} names attributes in which the module keeps its "
                    f"state, but a {type(module).__name__} has no {absent[0]!r}"
                )
            self.attributes = tuple(names)
        elif state is not None:
            if not isinstance(state, Adaptor):
                raise TypeError(
                    "bptt.audit: expected state to name attributes of the module, or an adaptor "
                    f"with the methods 'given' and 'returned', got {state!r}"
                )
            self.adaptor = state

    # ------------------------------------------------------------------------------- before

    def may_be_state(self, args: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
        """Return the tensors that may be the state before a call, in their order."""
        if self.attributes:
            found: Any = [getattr(self.module, name) for name in self.attributes]
        elif self.adaptor is not None:
            found = self.adaptor.given(*args, **options)
        else:
            found = [args[1:], [options[n] for n in STATES if n in options]]
        return [v for v in tensors_of(found) if is_float(v)]

    # -------------------------------------------------------------------------------- after

    def read(
        self, args: tuple[Any, ...], options: dict[str, Any], given: list[Tensor], output: Any
    ) -> CallRead:
        """Read a call that has returned.

        Raises:
            TypeError: no state is found in what it returned.
        """
        x = args[0] if args else next(iter(options.values()), None)
        y, returned = self._split(given, output)
        if not returned:
            kind = type(self.module).__name__
            raise TypeError(
                f"bptt.audit: no state is found in what the {kind} returned; name the attributes "
                "that hold it, state=('mem',), or give an adaptor, state="
            )
        given = given[: len(returned)]
        time = self._time(y)
        if isinstance(y, PackedSequence):
            lengths = pad_packed_sequence(y)[1].tolist()
            sizes = len(y.batch_sizes), len(lengths)
            return CallRead(x, y.data, given, returned, *sizes, lengths, 0, False, y[1:])
        if time is None:
            first = returned[0] if y is None else y
            batch = first.shape[0] if first.dim() > 1 or (first.dim() and y is not None) else 1
            return CallRead(x, y, given, returned, 1, batch, [1] * batch, None, first.dim() < 2)
        is_unbatched = y.dim() == 2
        steps = y.shape[0] if is_unbatched else y.shape[time]
        batch = 1 if is_unbatched else y.shape[1 - time]
        return CallRead(x, y, given, returned, steps, batch, [steps] * batch, time, is_unbatched)

    def _split(self, given: list[Tensor], output: Any) -> tuple[Any, list[Tensor]]:
        """Tell outputs from the state after the call."""
        if self.attributes:
            found: Any = [getattr(self.module, name) for name in self.attributes]
            y = output[0] if isinstance(output, tuple | list) else output
        elif self.adaptor is not None:
            y, found = self.adaptor.returned(output)
        elif self._is_cell(given, output):
            y, found = None, output
        else:
            y, found = output[0], output[1:]
        return y, [v for v in tensors_of(found) if is_float(v)]

    def _is_cell(self, given: list[Tensor], output: Any) -> bool:
        """Whether a call returns the state and nothing else."""
        if self.is_sequence:
            return False
        if isinstance(self.module, nn.RNNCellBase) or isinstance(output, Tensor):
            return True
        if not isinstance(output, tuple | list) or len(output) < 2:
            return True
        if not all(isinstance(v, Tensor) for v in output):
            return False
        shapes = {v.shape for v in output}
        if given:
            return len(given) == len(output) and shapes == {v.shape for v in given}
        return len(shapes) == 1 and "Cell" in type(self.module).__name__

    def _time(self, y: Any) -> int | None:
        if y is None and self.time in (0, 1):
            raise ValueError(
                f"bptt.audit: time={self.time} was given, but a {type(self.module).__name__} takes "
                "one step and returns its state alone; leave it out"
            )
        if y is None or isinstance(y, PackedSequence):
            return None
        if self.time != AUTO:
            return None if self.time is None else int(self.time)
        first = 1 if declared(self.module, "batch_first", False) else 0
        if y.dim() == 2:
            whole = isinstance(self.module, nn.RNNBase) or hasattr(self.module, "takes_unbatched")
            return 0 if whole else None
        return first if y.dim() > 2 else None
