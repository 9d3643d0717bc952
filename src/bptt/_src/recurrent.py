"""RNN, GRU and LSTM with the interface of torch.nn, and the same for any cell."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bptt._src.layers import Layers, parameter_names
from bptt._src.signatures import Device, Forward
from bptt.cells import BY_NAME, Cell
from bptt.cells.check import check_equations
from bptt.cells.elman import SIGMOID

Init = TypeVar("Init", bound=Callable[..., None])


class Recurrent(Layers):
    """Layers of any cell, with the arguments, the calls and the results of torch.nn's modules.

    Args:
        cell: the equations of a step.
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: layers stacked on each other.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: the probability with which an output of each layer but the last is dropped.
        bidirectional: whether a second network runs from the last step to the first.
        proj_size: the size P of the output, W_hr times what the equations call h; 0: it is H.
        device: where the parameters are.
        dtype: of the parameters.
        zoneout: the probability with which, in training, a unit keeps its state of the step before,
            or one for each tensor of the state (:mod:`bptt.cells.zoneout`).

    Parameters are named and shaped as torch.nn's, for X blocks of gates from the input and R from
    h: ``weight_ih_l0`` [X·H, I], ``weight_hh_l0`` [R·H, P], ``bias_ih_l0`` [X·H], ``bias_hh_l0``
    [R·H], ``weight_hr_l0`` [P, H] where there is a projection and ``weight_units_l0`` [U, H] where
    the cell has weights for each unit. They begin uniformly between ±1/√H, as torch.nn's do, unless
    the cell draws others (``cell.draw``).

    Raises:
        ValueError: a size is not positive, ``dropout`` is no probability, or the cell's equations
            are not elementwise, draw random numbers or have learnt tensors of their own; or
            ``zoneout`` does not fit the cell.

    >>> import torch, bptt
    >>> def equations(x, h, state, units):
    ...     f = torch.sigmoid(x[0] + h[0])
    ...     return ((1 - f) * state[0] + f * torch.tanh(x[1] + f * h[1]),)
    >>> gated = bptt.Cell("GATED", gates_x=2, gates_h=2, equations=equations)
    >>> network = bptt.Recurrent(gated, 10, 20, num_layers=2)
    >>> output, h_n = network(torch.randn(5, 3, 10), credit="truncated:2")
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    takes_unbatched = True
    """What the layout asks: an input of two dimensions is [T, I]."""

    if TYPE_CHECKING:
        forward: Forward[Any]
        __call__: Forward[Any]

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        zoneout: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(cell, Cell):
            raise TypeError(
                f"bptt.Recurrent: cell must be a bptt.Cell, as bptt.cells.MGU, got {cell!r}"
            )
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in (*sizes.items(), ("proj_size", proj_size)):
            least = 0 if name == "proj_size" else 1
            if value < least:
                raise ValueError(f"bptt.Recurrent: {name} must be at least {least}, got {value!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"bptt.Recurrent: dropout must be from 0 to 1, got {dropout}")
        check_equations(cell, projects=proj_size > 0)
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = sizes.values()
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.zoneout = zoneout
        of_x, of_h = cell.gates_x * hidden_size, cell.gates_h * hidden_size
        outputs, inputs = proj_size or hidden_size, input_size
        for layer in range(num_layers):
            shapes: tuple[tuple[int, ...] | None, ...] = (
                (of_x, inputs),
                (of_h, outputs),
                (of_x,) if bias else None,
                (of_h,) if bias else None,
                (proj_size, hidden_size) if proj_size else None,
                (cell.units, hidden_size) if cell.units else None,
            )
            for reverse in (False, True)[: 1 + bidirectional]:
                for name, shape in zip(parameter_names(layer, reverse), shapes, strict=True):
                    if shape is not None:
                        values = torch.empty(shape, device=device, dtype=dtype)
                        self.register_parameter(name, nn.Parameter(values))
            inputs = outputs * (1 + bidirectional)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        most = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -most, most)
        if self.cell.draw is not None:
            for layer in range(self.num_layers):
                for reverse in self._directions:
                    self.cell.draw(self._weights(layer, reverse))

    def extra_repr(self) -> str:
        """Describe the arguments as torch.nn does."""
        ours = f"{self.cell.name}, {self.input_size}, {self.hidden_size}"
        usual = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "zoneout": (),
        }
        given = [f"{k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join([ours, *given])


class _OfTorch(Layers, nn.RNNBase):
    """The parameters, their names and initial values, and all else of torch.nn's modules."""

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """Its equations."""
        return BY_NAME[self.mode]

    @property
    def _is_torchs(self) -> bool:
        return self.cell is not SIGMOID and not self.zoneout

    def extra_repr(self) -> str:
        """Describe the arguments as torch.nn does."""
        return super().extra_repr() + (f", zoneout={self.zoneout}" if self.zoneout else "")


def _no_projection(init: Init) -> Init:
    """Refuse ``proj_size`` as torch.nn's RNN and GRU do: with another error than what they lack."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        if "proj_size" in options:
            raise ValueError(
                f"bptt.{type(self).__name__}: proj_size is for an LSTM, not for an RNN or GRU; "
                "bptt.Recurrent projects the output of any cell that does not read it back"
            )
        init(self, *args, **options)

    return cast(Init, checked)


class RNN(_OfTorch, nn.RNN):
    """The Elman network, with every argument of :class:`torch.nn.RNN` and one more nonlinearity.

        h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: layers stacked on each other.
        nonlinearity: φ: ``"tanh"``, ``"relu"`` or ``"sigmoid"``; torch.nn has no sigmoid.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: the probability with which an output of each layer but the last is dropped.
        bidirectional: whether a second network runs from the last step to the first.
        device: where the parameters are.
        dtype: of the parameters.
        zoneout: the probability with which, in training, a unit keeps its state of the step before,
            or one for each tensor of the state (:mod:`bptt.cells.zoneout`).

    Parameters are named, shaped and initialised as torch.nn's: ``weight_ih_l0`` [H, I],
    ``weight_hh_l0`` [H, H], ``bias_ih_l0`` and ``bias_hh_l0`` [H], with ``_reverse`` appended
    for the second direction.

    >>> import torch, bptt
    >>> rnn = bptt.RNN(10, 20, num_layers=2, nonlinearity="sigmoid")
    >>> output, h_n = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    if TYPE_CHECKING:
        forward: Forward[Tensor]
        __call__: Forward[Tensor]

    @_no_projection
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        zoneout: float | Sequence[float] = 0.0,
    ) -> None:
        if nonlinearity not in ("tanh", "relu", "sigmoid"):
            raise ValueError(
                f"bptt.RNN: nonlinearity must be 'tanh', 'relu' or 'sigmoid', got {nonlinearity!r}"
            )
        mode = f"RNN_{nonlinearity.upper()}"
        nn.RNNBase.__init__(
            self,
            "RNN_TANH" if nonlinearity == "sigmoid" else mode,  # the same sizes
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.mode, self.nonlinearity = mode, nonlinearity
        self.zoneout = zoneout

    def extra_repr(self) -> str:
        """Describe the arguments as torch.nn does; the nonlinearity only where it has none."""
        ours = ", nonlinearity=sigmoid" if self.nonlinearity == "sigmoid" else ""
        return super().extra_repr() + ours


class GRU(_OfTorch, nn.GRU):
    """The gated recurrent unit, with every argument of :class:`torch.nn.GRU`.

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: layers stacked on each other.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: the probability with which an output of each layer but the last is dropped.
        bidirectional: whether a second network runs from the last step to the first.
        device: where the parameters are.
        dtype: of the parameters.
        zoneout: the probability with which, in training, a unit keeps its state of the step before,
            or one for each tensor of the state (:mod:`bptt.cells.zoneout`).

    The equations, the order of the gates (r, z, n) and the parameters' names, shapes and
    initial values are torch.nn's: ``weight_ih_l0`` [3·H, I], ``weight_hh_l0`` [3·H, H],
    ``bias_ih_l0`` and ``bias_hh_l0`` [3·H]; see :mod:`bptt.cells.gru`.

    >>> import torch, bptt
    >>> gru = bptt.GRU(10, 20, bidirectional=True)
    >>> gru.load_state_dict(torch.nn.GRU(10, 20, bidirectional=True).state_dict())
    <All keys matched successfully>
    >>> output, h_n = gru(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    if TYPE_CHECKING:
        forward: Forward[Tensor]
        __call__: Forward[Tensor]

    @_no_projection
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        zoneout: float | Sequence[float] = 0.0,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.zoneout = zoneout

    def _under_autocast(
        self, dtype: torch.dtype, state: tuple[Tensor, ...], is_packed: bool
    ) -> list[torch.dtype]:
        return [_promoted(dtype, s) for s in state]


class LSTM(_OfTorch, nn.LSTM):
    """The long short-term memory, with every argument of :class:`torch.nn.LSTM`.

    Args:
        input_size: the number of inputs I.
        hidden_size: the number of hidden units H.
        num_layers: layers stacked on each other.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: the probability with which an output of each layer but the last is dropped.
        bidirectional: whether a second network runs from the last step to the first.
        proj_size: the size P of the output, W_hr times what the equations call h; 0: it is H.
        device: where the parameters are.
        dtype: of the parameters.
        zoneout: the probability with which, in training, a unit keeps its state of the step before,
            or one for each tensor of the state (:mod:`bptt.cells.zoneout`).

    The equations, the order of the gates (i, f, g, o), the projection and the parameters' names,
    shapes and initial values are torch.nn's: ``weight_ih_l0`` [4·H, I], ``weight_hh_l0`` [4·H, P],
    ``bias_ih_l0`` and ``bias_hh_l0`` [4·H], and ``weight_hr_l0`` [P, H] where there is a
    projection; see :mod:`bptt.cells.lstm`.

    >>> import torch, bptt
    >>> lstm = bptt.LSTM(10, 20, num_layers=2)
    >>> x, starts = torch.randn(5, 3, 10), torch.zeros(5, 3, dtype=torch.bool)
    >>> starts[2, 0] = True  # a new episode begins here in the first sequence
    >>> output, (h_n, c_n) = lstm(x, resets=starts)
    >>> output.shape, c_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    if TYPE_CHECKING:
        forward: Forward[tuple[Tensor, Tensor]]
        __call__: Forward[tuple[Tensor, Tensor]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        zoneout: float | Sequence[float] = 0.0,
    ) -> None:
        nn.RNNBase.__init__(
            self,
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        self.zoneout = zoneout

    def _under_autocast(
        self, dtype: torch.dtype, state: tuple[Tensor, ...], is_packed: bool
    ) -> list[torch.dtype]:
        if not (is_packed or self.proj_size):
            return [dtype, dtype]  # oneDNN's and cuDNN's
        of_c = _promoted(dtype, state[1])
        return [dtype if self.proj_size else of_c, of_c]


def _promoted(autocast: torch.dtype, state: Tensor) -> torch.dtype:
    """Of what torch computes step by step on a CPU, from products and the state before."""
    return torch.promote_types(autocast, state.dtype) if state.is_cpu else autocast
