"""Hears the calls of a module and the gradients that arrive there, and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.utils.rnn import PackedSequence
from torch.optim.optimizer import register_optimizer_step_post_hook

from bptt._src.audit.effective import RunInputs
from bptt._src.audit.labels import Labels
from bptt._src.audit.links import Port, Ports
from bptt._src.audit.reaching import is_run, leaves_of, reaches
from bptt._src.audit.reading import AUTO, CallRead, Reader
from bptt._src.audit.record import OUTPUTS, RELAY, HeardCall, Pass, Record
from bptt._src.audit.remembered import Remembered
from bptt._src.audit.uses import edges_of, now, uses
from bptt._src.credit import plan as planning
from bptt._src.credit.online import OnlineState
from bptt._src.layout import declared
from bptt._src.pytree import map_tensors, tensors_of

_current_pass: Callable[[], int] = torch._C._current_graph_task_id  # -1: no backward pass runs


class Listener:
    """Records one module's calls, and the backward passes through them.

    Args:
        module: the module.
        labels: which stream, step and episode the steps of a call are.
        state: how its state is found, as for :class:`Reader`.
        time: the dimension of time.
        most: after how many steps recording ends.
    """

    def __init__(
        self, module: nn.Module, labels: Labels, state: Any = None, time: Any = AUTO, most: int = 0
    ) -> None:
        self.module, self.labels, self.most = module, labels, most
        is_lstm = isinstance(module, nn.LSTM | nn.LSTMCell)
        self.record = Record(type(module).__name__, ("h", "c") if is_lstm else ())
        self.inputs = RunInputs(module)
        self._reader = Reader(module, state, time)
        self._remembered, self._ports = Remembered(), Ports()
        self._passes: dict[int, Pass] = {}
        self._parameters: list[Tensor] = list(module.parameters())
        self._instead: list[Tensor] = []
        self._leaves: list[Tensor] = []
        """What its calls were computed from, where that has no parameters that add up gradients."""
        self._fingerprint, self._update, self._key = b"", 0, object()
        self._is_unrolled = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count the steps of optimizers for the time of the block."""

        def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            mine = {id(p) for p in self._parameters}
            groups = optimizer.param_groups
            self.record.optimizer_steps += any(id(p) in mine for g in groups for p in g["params"])
            self._ports.forget()

        handle = register_optimizer_step_post_hook(count)
        try:
            yield
        finally:
            handle.remove()
            self.record.passes = [self._passes[k] for k in sorted(self._passes)]
            self._ports.forget()

    # --------------------------------------------------------------------------------- calls

    def call(
        self, forward: Any, args: tuple[Any, ...], options: dict[str, Any], unrolled: Any = None
    ) -> Any:
        """Run a call of the module, or of bptt.unroll for it, and record it."""
        reader = self._reader if unrolled is None else _reader_of(unrolled, options)
        if _current_pass() != -1:
            # bptt.unroll runs pieces again, of calls that were heard as a whole.
            again = forward if self._is_unrolled else partial(self._again, reader, forward)
            return again(*args, **options)
        if torch._C._functorch.maybe_current_level() is not None:
            raise RuntimeError(
                "bptt.audit: the module is called inside a transform of torch.func (grad, vmap, "
                "...), whose values and gradients cannot be heard; audit a loop that calls "
                "backward or torch.autograd.grad"
            )
        self._is_unrolled |= unrolled is not None
        if self.record.steps >= self.most:
            output = forward(*args, **options)
            given = reader.may_be_state(args, options)
            self.record.not_recorded += reader.read(args, options, given, output).steps
            return output
        with_graph = torch.is_grad_enabled()
        given = reader.may_be_state(args, options)
        edges, since = edges_of(given if with_graph else ()), now()
        values = [v.detach().clone() for v in given]  # the call may change them in place
        plans: list[Any] = []
        planning.heard.append(plans.append)
        try:
            output = forward(*args, **options)
        finally:
            planning.heard.remove(plans.append)
        read = reader.read(args, options, values, output)
        edges = edges[: len(read.given)]
        call = self._new_call(read, with_graph)
        _inside(call, read, options, plans)
        call.is_online = any(isinstance(v, OnlineState) for v in (*args, *options.values()))
        call.origins = self._remembered.origins(read.given, read)
        call.ends_zero = self._remembered.keep(call.number, read)
        if with_graph:
            for node, place, port in self._ports.links(call, edges, read):
                lay_out, shape = self._ports.layout(port)
                hook = self._heard("measured", port, lay_out)
                node.register_hook(partial(_returned, hook, place, shape))
            call.fed_back = self._ports.feeding(read.x)
        self.labels.label(call, read)
        self.inputs.keep(call, read)
        self.record.calls.append(call)
        self.record.steps += read.steps
        if with_graph:
            if not any(p.is_leaf and p.requires_grad for p in self.module.parameters()):
                self._leaves += leaves_of((read.y, *read.returned), self._key)
            self._hear_state(call, read, output, edges, since)
            for part, (v, edge) in enumerate(zip(given, edges, strict=False)):
                if edge is not None and v.grad_fn is edge.node:
                    self._ports.relay(call, part, v, read)
                    hook = self._heard("initial", (call.number, part), read.by_sequence)
                    v.register_hook(
                        partial(self._if_measured, Port(call.number, RELAY - part), hook)
                    )
            output = self._hear_gradients(call, read, output)
        return output

    def _again(self, reader: Reader, forward: Any, *args: Any, **options: Any) -> Any:
        """Let a checkpoint run the module again, inside a backward pass."""
        output = forward(*args, **options)
        given = reader.may_be_state(args, options)
        read = reader.read(args, options, given, output)
        for v in (read.y, *read.returned):
            if isinstance(v, Tensor) and v.requires_grad:
                v.register_hook(_refuse_nested)
        return output

    def _new_call(self, read: CallRead, with_graph: bool) -> HeardCall:
        self._look_at_parameters()
        self.record.can_learn = any(p.requires_grad for p in self.module.parameters())
        return HeardCall(
            number=len(self.record.calls),
            first=self.record.steps,
            steps=read.steps,
            batch=read.batch,
            lengths=read.lengths,
            with_graph=with_graph,
            is_training=self.module.training,
            update=self._update,
            returned_graph=[v.requires_grad for v in read.returned],
            is_bidirectional=bool(declared(self.module, "bidirectional", False)),
            returns_state_only=read.y is None,
        )

    def _look_at_parameters(self) -> None:
        """Count an update if the parameters have changed since the last look."""
        values = hashlib.blake2b(digest_size=16)
        now = list(self.module.parameters())
        if any(a is not b for a, b in zip(now, self._parameters, strict=False)):
            # For the time of a call, as torch.func.functional_call puts them.
            self._instead = [*now]
            return
        for p in now:
            few = p.detach().reshape(-1)[:16]
            if type(few) is Tensor or type(few) is nn.Parameter:
                values.update(few.clone().cpu().float().numpy().tobytes())
        found = values.digest()
        if self._fingerprint and found != self._fingerprint:
            self._update += 1
            self._ports.forget()
        self._fingerprint = found

    # ----------------------------------------------------------------------------- gradients

    def _hear_state(
        self,
        call: HeardCall,
        read: CallRead,
        output: Any,
        edges: list[GradientEdge | None],
        since: int,
    ) -> None:
        """Register hooks where the call's graph takes in the state before it."""
        results = [v for v in (*tensors_of(output), read.y, *read.returned) if v is not None]
        for part, found in uses(results, edges, since).items():
            hook = self._heard("before", (call.number, part), read.by_sequence)
            shape = read.given[part].shape
            for node, place in found:
                node.register_hook(partial(_returned, hook, place, shape))

    def _hear_gradients(self, call: HeardCall, read: CallRead, output: Any) -> Any:
        """Register hooks; return a call's output with the state cloned."""
        clones = {id(v): v.clone() for v in read.returned if v.requires_grad}
        output = self._with_clones(output, clones)
        y = None if read.y is None else clones.get(id(read.y), read.y)
        if y is not None and y.requires_grad:
            self._ports.mark(call.number, OUTPUTS, y, read)
            y.register_hook(self._heard("outputs", call.number, read.by_step))
        for part, before in enumerate(read.returned):
            v = clones.get(id(before), before)
            if v.requires_grad:
                self._ports.mark(call.number, part, v, read)
                v.register_hook(self._heard("after", (call.number, part), read.by_sequence))
        read.forget()
        return output

    def _if_measured(self, port: Port, hook: Any, gradient: Tensor) -> None:
        if port in self._ports.measured:
            hook(gradient)

    def _with_clones(self, output: Any, clones: dict[int, Tensor]) -> Any:
        def cloned(v: Tensor) -> Tensor:
            return clones.get(id(v), v)

        for name in self._reader.attributes:
            setattr(self.module, name, map_tensors(cloned, getattr(self.module, name)))
        return output if isinstance(output, PackedSequence) else map_tensors(cloned, output)

    def _heard(self, what: str, key: Any, lay_out: Callable[[Tensor], Tensor]) -> Any:
        """Make a hook that keeps a gradient of the pass that runs."""
        number, part = key if what == "after" else (key, OUTPUTS)

        def hook(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            if self._ports.is_asking:
                stops = what in ("outputs", "after")
                return self._ports.stopped(Port(number, part), gradient) if stops else None
            near = 4 * torch.finfo(gradient.dtype).eps
            self.record.near = max(self.record.near, near)
            values = lay_out(gradient.detach())
            values = values.double() if values.dtype == torch.float64 else values.float()
            by_step = what == "outputs" or (what == "measured" and key[1] == OUTPUTS)
            shape = values.shape[: 2 if by_step else 1]
            kept = values.reshape(*shape, -1).clone().cpu().numpy()
            heard = getattr(self._pass(), what)
            heard[key] = heard[key] + kept if key in heard else kept
            return None

        return hook

    def _pass(self) -> Pass:
        """Return the backward pass that runs now."""
        number = _current_pass()
        if number not in self._passes:
            self._look_at_parameters()
            learnt = [p for p in (*self._parameters, *self._instead) if p.requires_grad]
            added = [v for v in (*learnt, *self._leaves) if v.is_leaf and is_run(v)]
            held = [v.grad for v in added if v.grad is not None]
            is_cleared = bool(added) and not any(bool(g.any()) for g in held)
            reached, is_returned = reaches(learnt)
            self._passes[number] = Pass(self._update, reached, is_cleared, is_returned)
        return self._passes[number]


def _reader_of(unrolled: Any, options: dict[str, Any]) -> Reader:
    """How a call of bptt.unroll is read."""
    first = options.get("batch_first") or declared(unrolled, "batch_first", False)
    return Reader(unrolled, time=1 if first else 0, is_sequence=True)


def _returned(
    hook: Any, place: int, shape: torch.Size, gradients: tuple[Tensor | None, ...], *_: Any
) -> None:
    """Hand on one of the gradients that a node returns, which may not be summed up yet."""
    gradient = gradients[place]
    if gradient is not None:
        hook(gradient if gradient.shape == shape else gradient.sum_to_size(shape))


def _refuse_nested(gradient: Tensor) -> None:
    raise RuntimeError(
        "bptt.audit: the module is run again inside a backward pass that is nested in another, "
        "whose gradients cannot be followed: use torch.utils.checkpoint with use_reentrant=False; "
        "give bptt.unroll the audited module, or one that contains it, instead of a function"
    )


def _inside(call: HeardCall, read: CallRead, options: dict[str, Any], plans: list[Any]) -> None:
    """Set what a call of bptt's own modules, or of bptt.unroll, does with credit inside."""
    given = {name: options.get(name) for name in ("carry", "resets")}
    for name, v in given.items():
        if isinstance(v, Tensor):
            values = v.detach().cpu().numpy()
            values = values.T if values.ndim == 2 and read.time == 1 else values
            given[name] = np.broadcast_to(
                values if values.ndim == 2 else values[:, None], (read.steps, read.batch)
            )
    if given["resets"] is not None:
        call.resets = np.array(given["resets"], bool)
    plan = plans[-1] if plans else None
    if plan is None and given["carry"] is not None:
        plan = planning.Plan(read.steps, given["carry"])
    if plan is None and call.resets is None:
        return
    plan = planning.Plan(read.steps) if plan is None else plan
    weights, of_initial = plan.matrix(), plan.of_initial_state()
    if call.resets is not None:
        number = np.cumsum(call.resets, 0).T  # [B, T]
        weights = weights * (number[:, :, None] == number[:, None, :])
        of_initial = of_initial * (number == 0)
    call.weights, call.of_initial = weights, of_initial
