"""What an engine is, and what a call of one is given and gives.

Three kinds of work are done by whole calls: a sequence of one layer in one direction, forwards and
backwards; the loss of a linear readout (:mod:`engines.readout`); and many losses on their way back
through a layer's steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from bptt._src.engines.readout import Found, Readout
from bptt._src.engines.windows import Windows
from bptt._src.steps import Boundary, Steps
from bptt.cells import WEIGHT_NAMES, Cell, State, Weights


class Call(NamedTuple):
    """A sequence of one layer in one direction.

    Where there are no windows, what has N or B rows may be laid out in more dimensions, as
    [T, B, I] or [1, B, H]; what is computed from it is laid out likewise.
    """

    cell: Cell
    x: Tensor
    """The inputs, [N, I], and beside them the masks of a cell that has some, [N, I + masks·H]."""
    state: State
    """The initial state, each of its tensors [B, ...]."""
    w: Weights
    steps: Steps
    """Which rows belong to which step."""
    boundary: Boundary = Boundary()
    """What happens to the state and its gradient between the steps."""
    windows: Windows | None = None
    """Windows of losses that overlap."""
    by_windows: bool = False
    """Whether ∂L/∂x has a row for each row of the windows."""
    all_states: bool = False
    """Whether the states but h after each step are wanted, too."""
    bf16: bool = False
    """Whether both sides of each product may be rounded to bfloat16. All else is float32, and so
    are the products where an engine, or the processor, has no others."""

    @property
    def walk(self) -> Steps:
        """The steps of the backward pass: those of the windows, where there are any."""
        return self.steps if self.windows is None else self.windows.steps

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that may need a gradient: x, the initial state, the weights."""
        return (self.x, *self.state, *self.w)

    def emptied(self) -> Call:
        """The same without those tensors."""
        nothing: Any = None
        return Call(self.cell, nothing, nothing, nothing, *self[4:])

    def filled(self, tensors: tuple[Any, ...]) -> Call:
        """The same with other tensors, in the order of :meth:`tensors`."""
        cell, w = self.cell, 1 + self.cell.states
        return Call(cell, tensors[0], tensors[1:w], Weights(*tensors[w:]), *self[4:])

    def check_sizes(self) -> None:
        """Refuse weights of other sizes or devices: torch would expand or misread some of them.

        Raises:
            RuntimeError: a weight does not fit the input and the state.
        """
        cell, x, w = self.cell, self.x, self.w
        P, H = self.state[0].shape[-1], cell.hidden(w)
        of_x, of_h = cell.gates_x * H, cell.gates_h * H
        shapes = (
            (of_x, x.shape[-1] - cell.masks * H),
            (of_h, P),
            (of_x,),
            (of_h,),
            (P, H),
            (cell.units, H),
        )
        for name, t, shape in zip(WEIGHT_NAMES, w, shapes, strict=True):
            if t is not None and t.device != x.device:
                raise RuntimeError(
                    f"bptt: the input and weights are not at the same device, found the input at "
                    f"{x.device} and {name} at {t.device}: move one of them with .to(device)"
                )
            if t is not None and t.shape != shape:
                raise RuntimeError(
                    f"bptt: expected {name} of shape {shape}, as the sizes of the input and the "
                    f"state have it, got {tuple(t.shape)}"
                )


class FlowCall(NamedTuple):
    """A layer, whose steps many losses are taken through at once (:mod:`flow.step_matrix`)."""

    cell: Cell
    x: Tensor
    """The inputs, [N, I]."""
    w: Weights

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return its tensors."""
        return (self.x, *self.w)


AnyCall = Call | FlowCall | Readout


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    y: Tensor
    """The outputs, [N, P]."""
    kept: tuple[Tensor, ...]
    """Whatever else the engine needs."""


class Incoming(NamedTuple):
    """What a backward pass starts from."""

    d_y: Tensor | None
    """∂L/∂y, [N, P], or [rows of the windows, P]; None where no output was used."""
    d_state: State | None
    """∂L/∂(final state), each of its tensors [B, ...], or a row for each window; may be
    overwritten. None: it is zero, and that of the initial state is not needed."""
    needed: tuple[bool, ...]
    """Whether the gradient of each tensor is, in the order of :meth:`Call.tensors`."""
    row_norms: Tensor | None = None
    """To be filled with ‖∂L/∂(state after step t)‖ of each row, one tensor of the state beside the
    other, as the step after hands it down, ``d_y`` not added yet: [N, tensors of the state]
    float64, or [rows of the windows, tensors of the state]."""
    d_others: tuple[Tensor | None, ...] = ()
    """∂L/∂(state after each step) of the states but h, each laid out like ``d_y``; None or missing:
    it is zero."""


class Gradients(NamedTuple):
    """What a backward pass gives; None where it was not wanted."""

    x: Tensor | None
    """∂L/∂x, laid out like x, or a row for each row of the windows."""
    state: State | None
    """∂L/∂(initial state), each of its tensors [B, ...], or a row for each window."""
    w: tuple[Tensor | None, ...]
    """Those of the weights."""


@runtime_checkable
class Engine(Protocol):
    """A module with these functions; :data:`engines.backend.ENGINES` lists them in order."""

    RECORDS: bool
    """Whether autograd and torch's modes see each of its operations, none of them in place."""

    def serves(self, call: AnyCall) -> str | None:
        """Return why it cannot do this; None where it can."""

    def forward(self, call: Call, keep: bool) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """Run a sequence.

        Args:
            call: the sequence.
            keep: whether there will be a backward pass.

        Returns:
            The outputs [N, P], the final state, and what :meth:`backward` needs besides.
        """

    def blocks(
        self, call: Call, before: Tensor, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """Return W_ih x_t + b_ih and W_hh h_{t-1} + b_hh of each row, [N, G·H], as this run had
        them; None where the engine has none of that kind.

        Args:
            call: the sequence.
            before: h_{t-1} of each row, [N, P], zero where it was reset.
            kept: what the forward pass kept.
        """

    def values(self, call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Return from what a forward pass kept the gates, and what else the cell's recursion by
        hand keeps besides the states, each [N, H]; None where the engine keeps something else.
        """

    def other_states(self, call: Call, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return from what a forward pass kept the states but h after each step, each [N, H]."""

    def backward(self, call: Call, saved: Saved, incoming: Incoming) -> Gradients:
        """Run the recursion of the deltas, and what follows from them."""

    def cross_entropy(self, readout: Readout) -> Found:
        """Compute the losses of a readout, and their gradients."""
