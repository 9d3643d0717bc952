"""Layers of a cell: directions, packed sequences, and what is asked of the gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt._src.again import run_often
from bptt._src.compiled_call import plain_call
from bptt._src.credit.credit import Credit
from bptt._src.credit.online import OnlineState, is_online
from bptt._src.credit.plan import Plan, check_directions, plan_for
from bptt._src.credit.spelling import as_credit
from bptt._src.dtypes import check_dtype, computed_in, is_bf16, rounded
from bptt._src.dynamo import allow
from bptt._src.engines.guard import is_exporting, only_by_autograd, without_autocast
from bptt._src.engines.plan_operator import Crossing, plan_of
from bptt._src.engines.recording import are_recorded
from bptt._src.engines.windows import windows_of
from bptt._src.exported import Exported, is_by_tracing, is_onnx_export
from bptt._src.initial import initial_state
from bptt._src.layout import Layout
from bptt._src.leaf import leaf
from bptt._src.pieces import in_pieces, is_cut_for_torch
from bptt._src.quantizing import NotQuantized
from bptt._src.rows import Rows, order_of, sizes_of
from bptt._src.run_layer import Directly, LayerRun, Recorded
from bptt._src.run_online import run_online
from bptt._src.uncompiled import uncompiled
from bptt._src.zoned import WithZoneout
from bptt.cells import WEIGHT_NAMES, Cell, State, Weights


class Layers(WithZoneout, NotQuantized, nn.Module):
    """What all recurrent modules share: everything but their parameters.

    Subclasses have the attributes of :class:`torch.nn.RNNBase`, and its parameters by name. Those
    that are torch.nn's modules too leave it the computation on a GPU, where it knows or can be made
    to know what is asked (:mod:`bptt._src.pieces`).
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    takes_carry = takes_credit = True
    """What :func:`bptt.unroll` asks: that plans can be handed on, to be carried out in one pass."""

    @leaf
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        credit: Credit | Plan | str | None = None,
        carry: Tensor | None = None,
        resets: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_states: bool = False,
    ) -> Any:
        """Run the network over a sequence.

        Args:
            input: [T, B, I], or [B, T, I] with ``batch_first``, or [T, I] unbatched, or a
                PackedSequence.
            hx: the initial state h_0, [L·D, B, H] for L layers and D directions, without the B
                if the input is unbatched; for an LSTM ``(h_0, c_0)``, where h_0 is
                [L·D, B, P] if there is a projection. Zeros by default.
            credit: how far back the losses are credited, as :class:`bptt.Truncated` or one of
                your own, or its spelling, as ``"truncated:20"``; all the way by default. It is
                the same in every layer. The outputs do not depend on it. In the reverse direction
                the gradient crosses the same boundaries the other way; windows that overlap have
                no meaning there. With :class:`bptt.Online` the final state is a
                :class:`bptt.credit.OnlineState`, which goes into the next call as ``hx``.
            carry: in place of a credit, factors of the state's gradient, [T], or one for each
                sequence, [T, B], or [B, T] with ``batch_first``: that of step t multiplies it
                where it crosses from step t to step t-1, in every layer. 1 passes, 0 cuts; 1
                everywhere by default.
            resets: bool, [T], or one for each sequence, [T, B], or [B, T] with ``batch_first``:
                the state is set to zero before the steps where it is true, and no gradient
                crosses. Sequences laid end to end do not see each other; in the reverse
                direction neither. Those of a PackedSequence are laid out by ``batch_first`` too:
                T is its longest sequence, and the order is that before packing.
            generator: draws what is random in the credit; torch's own by default.
            return_states: whether to return the states after each step, too.

        Returns:
            ``(output, h_n)`` or ``(output, (h_n, c_n))``, shaped as torch.nn's: output
            [T, B, D·H], laid out like the input; the final states are shaped like ``hx``. With
            ``return_states`` a third value: for each layer a tuple of its states after each step,
            (h,) or (h, c), each laid out like the output, before the dropout between layers.
            Gradients flow back through all of them.

        Raises:
            TypeError: ``carry`` or ``resets`` is no tensor.
            ValueError: the input's dtype or number of dimensions is not one of those above, or
                the shape or dtype of ``carry`` or ``resets``; or ``credit`` and ``carry`` are both
                given, or the credit has windows that overlap and the module two directions.
            RuntimeError: a size does not fit the module.
        """
        often = credit is None and carry is None and not return_states
        plain = often and resets is None
        if torch.compiler.is_dynamo_compiling() and plain and isinstance(input, Tensor):
            found = plain_call(self, input, hx)
            if found is not None:
                return found
        asked = credit, carry, resets, generator, return_states
        if isinstance(hx, OnlineState) or is_online(credit):
            return run_online(self, input, hx, asked)
        recorded = are_recorded()
        if recorded and is_onnx_export():
            return self._export(input, hx, asked)
        if isinstance(input, PackedSequence) and torch.compiler.is_dynamo_compiling():
            recorded = False  # torch's compiler makes no PackedSequence
        if plain and self._leaves_it_to_torch(input):
            return self._leave_it_to_torch(input, hx)
        if recorded:
            return self._record(input, hx, asked)
        return run_often(self, input, hx, asked) if often else self._run(input, hx, asked)

    @uncompiled
    def _run(self, input: Any, hx: Any, asked: tuple[Any, ...]) -> Any:
        credit, carry, resets, generator, return_states = asked
        rows = self._rows(input)
        state = self._initial_state(rows, hx)
        windows = None
        if credit is not None:
            plan = self._plan(rows, credit, carry, generator)
            carry = None if plan.is_full else torch.from_numpy(plan.carry)
            if carry is not None and carry.dim() == 2:  # laid out as a caller's would be
                is_shared = rows.is_unbatched or plan.batch == 1
                carry = carry[:, 0] if is_shared else carry.t() if self.batch_first else carry
            if plan.blocks and rows.batch and torch.is_grad_enabled():
                windows = windows_of(plan.blocks, rows.sizes).to(rows.x.device)
        carry, resets = self._crossing(rows, carry, resets)
        if windows is None and not return_states and is_cut_for_torch(self, rows):
            found = in_pieces(self, rows.x, state, carry, resets)
            if found is not None:
                return self._laid_out(rows, hx, False, found[0], [found[1]], [])
        bf16 = is_bf16(self._dtype, rows.x.device)
        run = Directly(rows.sizes, carry, resets, windows, self._directions, return_states, bf16)
        return self._through(rows, hx, state, run)

    def _record(self, input: Any, hx: Any, asked: tuple[Any, ...]) -> Any:
        """Run the network for whoever records the operations: one for each layer and direction."""
        credit, carry, resets, generator, return_states = asked
        rows = self._rows(input, recorded=True)
        state, blocks = self._initial_state(rows, hx), None
        if credit is not None:
            self._refuse_both(carry)
            asked = credit, rows.steps, rows.batch, generator
            carry, blocks = plan_of(*asked, where=self._called, both=self.bidirectional)
            if rows.is_unbatched:
                carry = carry[:, 0]
            elif self.batch_first:
                carry = carry.t()
            blocks = blocks if torch.is_grad_enabled() else None
        carry, resets = self._crossing(rows, carry, resets)
        sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
        of_rows = tuple(rows.x.shape[:-1])
        crossing = Crossing(carry, resets, blocks)
        bf16 = is_bf16(self._dtype, rows.x.device)
        run = Recorded(crossing, sizes, of_rows, self.num_layers, return_states, bf16)
        return self._through(rows, hx, state, run)

    def _through(self, rows: Rows, hx: Any, state: State, run: LayerRun) -> Any:
        """Run all layers, and lay the results out as the caller expects them."""
        with without_autocast(rows.x.device):
            found = self._layers(rows.x, state, run)
        return self._laid_out(rows, hx, run.all_states, *found)

    def _laid_out(self, rows: Rows, hx: Any, all_states: bool, *found: Any) -> tuple[Any, ...]:
        y, finals, each = rounded(rows, hx, self._dtype, self._under_autocast, *found)
        final = rows.final_state(finals)
        if not all_states:
            return rows.output(y, self.batch_first), final
        states = [tuple(rows.output(s, self.batch_first) for s in of_layer) for of_layer in each]
        return rows.output(y, self.batch_first), final, states

    def _export(self, input: Any, hx: Any, asked: tuple[Any, ...]) -> Any:
        """Run the network for ONNX, which has outputs alone, so that no credit changes anything."""
        credit, carry, resets, _, return_states = asked
        if credit is not None:
            self._refuse_both(carry)
            as_credit(credit)
        simple = self._is_torchs and not self.proj_size and resets is None and not return_states
        if is_by_tracing(self._called, input, simple):
            return self._leave_it_to_torch(input, hx)
        rows = self._rows(input, recorded=True)
        state = self._initial_state(rows, hx)
        _, resets = self._crossing(rows, carry, resets)
        return self._through(rows, hx, state, Exported(resets, return_states))

    def _under_autocast(
        self, dtype: torch.dtype, state: tuple[Tensor, ...], is_packed: bool
    ) -> list[torch.dtype]:
        return [dtype] * len(state)

    @property
    def _is_torchs(self) -> bool:
        """Whether torch.nn has this module, with these equations."""
        return False

    def _leaves_it_to_torch(self, input: Tensor | PackedSequence) -> bool:
        """Whether torch has this cell, and does better: on a GPU and in TorchScript."""
        if not self._is_torchs:
            return False
        x = input.data if isinstance(input, PackedSequence) else input
        is_cuda = isinstance(x, Tensor) and x.is_cuda
        if torch.compiler.is_dynamo_compiling():
            return is_cuda and not is_exporting()
        if is_cuda:
            return only_by_autograd(x) is None
        return torch._C._get_tracing_state() is not None

    @uncompiled  # torch.compile would write out every step
    def _leave_it_to_torch(self, input: Any, hx: Any) -> tuple[Tensor | PackedSequence, Any]:
        return cast("tuple[Tensor | PackedSequence, Any]", super().forward(input, hx))

    def _plan(
        self, rows: Rows, credit: Any, carry: Tensor | None, generator: torch.Generator | None
    ) -> Plan:
        self._refuse_both(carry)
        credit = as_credit(credit)
        plan = plan_for(credit, rows.steps, rows.batch, generator, where=self._called)
        check_directions(plan, credit, self.bidirectional, self._called)
        return plan

    def _refuse_both(self, carry: Tensor | None) -> None:
        if carry is not None:
            raise ValueError(f"{self._called}: give a credit or carry, not both: a credit makes it")

    def _layers(
        self, x: Tensor, state: State, run: LayerRun
    ) -> tuple[Tensor, list[State], list[State]]:
        """Run layer after layer.

        Returns:
            The outputs, the final state of each layer and direction, and all of those asked for.
        """
        dtype = computed_in(own := self._dtype, x.device)
        if x.dtype is not dtype or state[0].dtype is not dtype:
            x, state = x.to(dtype), tuple([s.to(dtype) for s in state])
        finals: list[State] = []
        each: list[State] = []
        cell, directions = self._stepped(), self._directions
        one = self.num_layers == len(directions) == 1
        of_each = [state] if one else list(zip(*(s.split(1) for s in state), strict=True))
        for layer in range(self.num_layers):
            outputs = []
            for reverse in directions:
                initial, w = of_each[len(finals)], self._weights(layer, reverse)
                if dtype is not own:
                    w = Weights(*[p if p is None else p.to(dtype) for p in w])  # type: ignore[arg-type]
                rows = torch.cat([x, run.drawn(self._masks, x, layer)], -1) if cell.masks else x
                y, final, others = run.layer(cell, rows, initial, w, reverse, layer)
                outputs.append((y, *others))
                finals.append(final)
            states = outputs[0]
            if len(outputs) > 1:
                states = tuple([torch.cat(s, dim=-1) for s in zip(*outputs, strict=True)])
            x, last = states[0], layer == self.num_layers - 1
            if run.all_states:
                each.append(tuple([run.result(s, last) for s in states]))
            if self.dropout and not last:
                x = run.drop_out(x, self.dropout, self.training)
        return run.result(x), finals, each

    def _parameter(self, name: str) -> Any:
        found = self._parameters.get(name)  # in most cases, and quicker than as an attribute
        return getattr(self, name) if found is None else found

    @property
    def _called(self) -> str:
        return f"bptt.{type(self).__name__}"

    @property
    def _dtype(self) -> torch.dtype:
        return cast(torch.dtype, self._parameter("weight_ih_l0").dtype)

    @property
    def _directions(self) -> tuple[bool, ...]:
        """Whether each is the reverse one."""
        return (False, True) if self.bidirectional else (False,)

    def _weights(self, layer: int, reverse: bool) -> Weights:
        # By name each time, so that functional_call and parametrizations are seen.
        of = _parameter_names if torch.compiler.is_compiling() else parameter_names
        get, names = self._parameter, of(layer, reverse)
        return Weights(
            get(names.ih),
            get(names.hh),
            get(names.b_ih) if self.bias else None,
            get(names.b_hh) if self.bias else None,
            get(names.hr) if self.proj_size else None,
            get(names.units) if self.cell.units else None,
        )

    # ------------------------------------------------------------ from arguments to rows

    def _rows(self, input: Tensor | PackedSequence, recorded: bool = False) -> Rows:
        """Lay the input out by steps; without the sizes of each, where they are symbols."""
        name = self._called
        sizes: tuple[int, ...] = ()
        is_unbatched = False
        if isinstance(input, PackedSequence):
            x = input.data
            if x.dim() != 2:
                raise RuntimeError(
                    f"{name}: the data of a PackedSequence must be [rows, {self.input_size}],"
                    f" got {tuple(x.shape)}"
                )
            order, steps = input.sorted_indices, len(input.batch_sizes)
            if recorded:
                batch = len(order) if order is not None else int(input.batch_sizes[0])
            else:
                sizes = sizes_of(input, name)
                batch = sizes[0]
        else:
            if not isinstance(input, Tensor):
                raise TypeError(f"{name}: expected a tensor as input, got {type(input).__name__}")
            if input.is_nested:
                raise RuntimeError(
                    f"{name}: nested tensors are not taken: pack the sequences with "
                    "torch.nn.utils.rnn.pack_sequence"
                )
            if input.dim() not in (2, 3):
                layout = "[B, T, I]" if self.batch_first else "[T, B, I]"
                raise ValueError(
                    f"{name}: expected input {layout}, or [T, I] unbatched, got "
                    f"{input.dim()} dimensions: {tuple(input.shape)}"
                )
            is_unbatched = input.dim() == 2
            x = input.unsqueeze(1) if is_unbatched else input
            if self.batch_first and not is_unbatched:
                x = x.transpose(0, 1)
            if x.shape[0] == 0:
                raise RuntimeError(
                    f"{name}: expected at least one step, got input {tuple(input.shape)}"
                )
            steps, batch = x.shape[0], x.shape[1]
            sizes = () if recorded else (batch,) * steps
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{name}: expected {self.input_size} inputs a step (input_size), got "
                f"{x.shape[-1]}: {tuple(input.data.shape)}"
            )
        check_dtype(name, "the input", x, self._dtype)
        return Rows(x, sizes, input, steps, batch, is_unbatched)

    def _state_sizes(self) -> tuple[int, ...]:
        """The sizes of the state's tensors, (P, H, H, ...)."""
        outputs = self.proj_size or self.hidden_size
        return (outputs, *(self.hidden_size,) * (self.cell.states - 1))

    def _initial_state(self, rows: Rows, hx: Any) -> State:
        cells, dtype = self.num_layers * len(self._directions), self._dtype
        return initial_state(self._called, rows, hx, cells, self._state_sizes(), dtype)

    def _crossing(
        self, rows: Rows, carry: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Check ``carry`` and ``resets`` and bring them to [T, B], in the rows' order."""
        if carry is None and resets is None:
            return None, None
        T, B = rows.steps, rows.batch
        order = order_of(rows.like, "sorted_indices")
        layout = Layout(T, None if rows.is_unbatched else B, 0, 1, self.batch_first, True)
        found: list[Tensor | None] = []
        for name, given, dtype in (
            ("carry", carry, computed_in(self._dtype, rows.x.device)),
            ("resets", resets, torch.bool),
        ):
            at = layout.by_time(name, given, f"{self._called}")
            if at is not None:
                at = at.to(rows.x.device, dtype)
                at = at.unsqueeze(1).expand(T, B) if at.dim() == 1 else at
                at = at if order is None else at.index_select(1, order)
            found.append(at)
        return found[0], found[1]


def _parameter_names(layer: int, reverse: bool) -> Any:
    """The names of a layer's weights, in the places of the weights."""
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    return Weights(*[name + suffix for name in WEIGHT_NAMES])  # type: ignore[arg-type]


parameter_names = lru_cache(maxsize=256)(_parameter_names)
allow(Layers)
