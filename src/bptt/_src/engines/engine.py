"""What the passes over a sequence take and give, whoever computes them: the twin or the library."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from bptt._src.engines.windows import Windows
from bptt._src.steps import Crossing, Steps
from bptt.cells import Cell, State, Weights


class Gradients(NamedTuple):
    """What a backward pass gives; None where it was not wanted."""

    x: Tensor | None
    """∂L/∂x, laid out like x, or a row for each row of the windows."""
    state: State | None
    """∂L/∂(initial state), each of its tensors [B, ...], or a row for each window."""
    w: Weights | tuple[Tensor | None, ...]
    """Those of the weights."""


@runtime_checkable
class Engine(Protocol):
    """The two passes over a sequence: a module that has them.

    Where there are no windows, what has N or B rows may be laid out in more dimensions, as
    [T, B, I] or [1, B, H]; what is computed from it is laid out likewise.
    """

    def forward(
        self,
        cell: Cell,
        x: Tensor,
        state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        keep: bool,
    ) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """Run the recursion.

        Args:
            cell: whose equations.
            x: the inputs, [N, I].
            state: the initial state, each of its tensors [B, ...].
            w: the layer's weights.
            steps: which rows belong to which step.
            at: what crosses between them.
            keep: whether there will be a backward pass.

        Returns:
            The outputs [N, P], the final state, and what :meth:`backward` needs besides them.
        """

    def unpack(self, cell: Cell, kept: tuple[Tensor, ...], hidden: int) -> tuple[Tensor, ...]:
        """Return what a forward pass of the RNN, GRU or LSTM kept, as tensors [N, H].

        Returns:
            The gates, then the GRU's W_hn h + b_hn or the LSTM's c_t; nothing of an Elman network,
            whose output says it all.
        """

    def backward(
        self,
        cell: Cell,
        x: Tensor,
        state: State,
        w: Weights,
        steps: Steps,
        at: Crossing,
        y: Tensor,
        kept: tuple[Tensor, ...],
        d_y: Tensor | None,
        d_state: State | None,
        needed: tuple[bool, ...],
        windows: Windows | None = None,
        by_windows: bool = False,
        row_norms: Tensor | None = None,
    ) -> Gradients:
        """Run the recursion of the deltas, and what follows from them.

        Args:
            cell: as for :meth:`forward`.
            x: likewise.
            state: likewise.
            w: likewise.
            steps: likewise.
            at: likewise.
            y: the outputs that :meth:`forward` gave.
            kept: and what it kept.
            d_y: ∂L/∂y, [N, P], or [rows of the windows, P]; None where no output was used.
            d_state: ∂L/∂(final state), each of its tensors [B, ...], or a row for each window;
                may be overwritten. None: it is zero, and that of the initial one is not needed.
            needed: whether the gradient of x is, and that of each of the weights.
            windows: that overlap, if any.
            by_windows: whether ∂L/∂x has a row for each row of the windows.
            row_norms: to be filled with ‖∂L/∂h_t‖, and for an LSTM ‖∂L/∂c_t‖ beside it, of each
                row, as the step after hands them down, ``d_y`` not added yet; [N, tensors of the
                state] float64, or [rows of the windows, tensors of the state].
        """
