"""``bptt.fuse``: a recurrent module over sequences, from a cell in plain PyTorch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import _disable_current_modes

from bptt._src.engines.recording import are_recorded
from bptt._src.exported import is_onnx_export
from bptt._src.fuse.fusion import Fusion
from bptt._src.fuse.operator import recorded
from bptt._src.fuse.packed import run_packed
from bptt._src.fuse.plans import FusionPlans, refusal
from bptt._src.fuse.step import CellStep
from bptt._src.fuse.tracing import Example
from bptt._src.uncompiled import uncompiled
from bptt._src.unroll.stepwise import Stepwise
from bptt.errors import FuseError


class Fused(nn.Module):
    """A cell in plain PyTorch, run over whole sequences by the native library: :func:`fuse`.

    It has the cell's parameters, buffers and submodules under the cell's own names, and is trained,
    moved, saved and loaded as the cell is: what happens to one happens to the other. :attr:`cell`
    is the cell itself.
    """

    batch_first = False
    state_batch_dim = 0
    _step: CellStep
    _given: Any
    _example: Example
    _plans: FusionPlans
    _told: set[str]
    _sizes: list[tuple[int, ...]]
    _recorded: dict[Fusion, str]
    _forms: dict[str, Any]

    def __init__(self, cell: Any, x_t: Any, state: Any) -> None:
        super().__init__()
        step = CellStep(cell, x_t, state)
        inner = step.module
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[name] = inner.__dict__[name]
        self.training = inner.training
        xs, states = step.x.tensors(x_t, "x_t"), step.state.tensors(state, "the state")
        example = Example([t.detach() for t in xs], [t.detach() for t in states], {})
        # Not as attributes are set, which would make the cell a submodule of itself.
        self.__dict__.update(_step=step, _given=cell, _example=example, **_nothing_known(step))
        self.__dict__["_sizes"] = [tuple(t.shape[1:]) for t in (*xs, *states)]

    @property
    def cell(self) -> Any:
        """The cell, as it was given, with the weights that this module has."""
        return self._given

    def forward(self, inputs: Any, state: Any = None, **others: Any) -> tuple[Any, Any]:
        """Run over the steps.

        Args:
            inputs: [T, B, ...], or a pytree of such, in the form of the example's x_t; or a
                PackedSequence, if x_t is a tensor.
            state: the initial state, in the form of the example's, each of its tensors
                [B, units]; None for zeros.
            others: refused; credit, resets and the like are arguments of :func:`bptt.unroll`.

        Returns:
            The outputs of all steps, [T, B, ...] or a pytree of such, and the final state; of a
            PackedSequence, outputs that are packed like it, and the states at the sequences' ends.

        Raises:
            TypeError: an argument belongs to :func:`bptt.unroll`.
            ValueError: inputs or state have another form than the example, their sizes do not
                fit, there are no steps, or the cell cannot take dtypes that differ.
        """
        if others:
            given = ", ".join(f"{name}=..." for name in others)
            raise TypeError(
                f"bptt.fuse: {self._get_name()} takes inputs and a state, got {given}: write "
                f"bptt.unroll(module, inputs, state, {given})"
            )
        if isinstance(inputs, PackedSequence):
            return run_packed(self.forward, inputs, state)
        found: tuple[Any, Any] | None = None
        if are_recorded() and torch._C._get_tracing_state() is None and not is_onnx_export():
            found = recorded(self, inputs, state)
        if found is not None:
            return found
        if torch.compiler.is_compiling():
            return self._run_uncompiled(inputs, state)
        return self._run(inputs, state)

    @uncompiled
    def _run_uncompiled(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        return self._run(inputs, state)

    def _run(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        step: CellStep = self._step
        xs = step.x.tensors(inputs, "inputs")
        T, B = _steps_and_batch(xs)
        states = self._zeros(xs, B) if state is None else step.state.tensors(state, "the state")
        for s in states:
            if s.dim() == 0 or s.shape[0] != B:
                raise ValueError(
                    f"bptt.fuse: expected a state for the {B} sequences of the inputs, each of "
                    f"its tensors [{B}, units], got {list(s.shape)}"
                )
        if T == 1 and not torch.is_grad_enabled():
            return step.once(xs, step.state.filled(states) if state is None else state)
        plan, own = self._plans.find(xs, states)
        if not isinstance(plan, Fusion):
            state = step.state.filled(states) if state is None else state
            by_steps = self._by_steps(inputs, state, xs, states)
            if plan:
                self._tell(plan)
            return by_steps
        outputs, after = plan.run(T, B, xs, states, own)
        return plan.output.filled(outputs), step.state.filled(after)

    def _by_steps(
        self, inputs: Any, state: Any, xs: list[Tensor], states: list[Tensor]
    ) -> tuple[Any, Any]:
        try:
            found: tuple[Any, Any] = Stepwise(self._given)(inputs, state)
        except RuntimeError as e:
            own = self._step.own()[1]
            found_in = {"inputs": xs, "a state": states, "parameters": own}
            dtypes = {name: _dtypes(tensors) for name, tensors in found_in.items()}
            is_about_them = any(word in str(e) for word in ("dtype", "scalar type"))
            if not is_about_them or len(set().union(*dtypes.values())) < 2:
                raise
            said = ", ".join(f"{name} of {' and '.join(d)}" for name, d in dtypes.items() if d)
            raise ValueError(
                f"bptt.fuse: {self._get_name()} got {said}: convert them to one "
                "dtype, with inputs.to(dtype) or module.to(dtype)"
            ) from e
        return found

    def _zeros(self, xs: list[Tensor], batch: Any) -> list[Tensor]:
        """Return a state of zeros, of the dtype of the inputs where they are numbers."""
        like = [*[x for x in xs if x.is_floating_point()], *self._example.state][0]
        return [like.new_zeros((batch, *sizes)) for sizes in self._sizes[len(xs) :]]

    def _plan_of_example(self, dtypes: Sequence[torch.dtype]) -> Fusion | str:
        """Return how inputs and states of these dtypes are run, as :meth:`FusionPlans.find`."""
        with _disable_current_modes(), torch.no_grad():
            every = [*[x[None] for x in self._example.x], *self._example.state]
            every = [t.to(dtype) for t, dtype in zip(every, dtypes, strict=True)]
            n = len(self._example.x)
            return self._plans.find_recorded(every[:n], every[n:])

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(
                f"bptt.fuse: {self!r} runs step by step: {reason}", RuntimeWarning, stacklevel=4
            )

    def not_native(self) -> str | None:
        """Return why it does not run natively; None where it does."""
        _, own = self._step.own()
        dtype = next((t.dtype for t in own if t.is_floating_point()), None)
        example = self._example if dtype is None else self._example.to(dtype)
        found = self._plan_of_example([t.dtype for t in (*example.x, *example.state)])
        return found if isinstance(found, str) else None

    # ------------------------------------------------------------- as the cell it is made of

    def train(self, mode: bool = True) -> Fused:
        """Set training mode, as torch.nn.Module."""
        super().train(mode)
        self._step.module.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        step = self.__dict__.get("_step")
        if step is not None and name in vars(step.module):
            return vars(step.module)[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is an attribute of the cell, as a number that its equations use, there."""
        step = self.__dict__.get("_step")
        if step is not None and name not in self.__dict__ and hasattr(step.module, name):
            setattr(step.module, name, value)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        if inspect.isfunction(self._given) and any(True for _ in self.parameters()):
            raise TypeError(
                "bptt.fuse: a fused function cannot be copied, as its copy would use the modules "
                "of the original: make the cell an nn.Module"
            )
        return {**self.__dict__, **_nothing_known(self._step)}

    def _get_name(self) -> str:
        return f"Fused{self._step.module._get_name()}"

    def extra_repr(self) -> str:
        return self._step.module.extra_repr()


def _nothing_known(step: CellStep) -> dict[str, Any]:
    return {"_plans": FusionPlans(step), "_told": set(), "_recorded": {}, "_forms": {}}


def _dtypes(tensors: list[Tensor]) -> list[str]:
    return sorted({str(t.dtype) for t in tensors if t.is_floating_point()})


def _steps_and_batch(xs: list[Tensor]) -> tuple[int, int]:
    shapes = {tuple(x.shape[:2]) for x in xs}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            "bptt.fuse: inputs must be [T, B, ...], each with the same numbers of steps and "
            f"sequences, got {[list(x.shape) for x in xs]}"
        )
    T, B = next(iter(shapes))
    if T == 0:
        raise ValueError("bptt.fuse: inputs have no steps")
    return T, B


def fuse(cell: Any, x_t: Any, state: Any) -> Fused:
    """Make a recurrent module over sequences of a cell in plain PyTorch, and run it natively.

    One step of the cell is traced, forward and backward, and split by what depends on what. What is
    made of parameters alone runs once a sequence; what depends on the inputs alone runs before the
    loop, on all steps at once; what the next state does not depend on, as a read-out, after it. The
    rest becomes a program that the native library runs over the steps, with the program of its
    derivatives; the gradients of weights are products over all steps.

    Before it is used it is compared with autograd on the cell, step by step, in float64: outputs,
    states and all gradients. So it is right, or it is refused. What is different at another
    step, another sequence of the batch or another size of the batch is refused likewise: a
    decision on a value, random numbers, a mean over the batch.

    The comparison has 1, 3 and 67 sequences; a decision in Python that only another number of
    sequences changes is not seen. Attributes of the cell, of its modules and of objects in them,
    and what its functions refer to, may change later: the step is traced anew. A hook that is
    registered on the cell or a module in it is refused, or makes the cell run step by step.

    Another dtype, a change of ``train()`` and ``eval()``, or other sizes are prepared when they are
    met. If they are refused then, and where there is no native library for them, as on a GPU, the
    cell runs step by step, with a warning that says why, as :func:`bptt.kernels.not_native` does.

    Args:
        cell: a module or function ``(x_t, state) -> (output, state)`` of one step, or one of
            torch.nn's cells, whose output is h.
        x_t: an example of what it is given at one step, [B, ...], or a pytree of such.
        state: an example of its state: a pytree of floating-point tensors [B, units].

    Returns:
        A module ``(inputs [T, B, ...], state) -> (outputs, state)`` for any numbers of steps and
        sequences, with the cell's parameters and ``state_dict``. ``fused.cell`` is the cell.

    Raises:
        bptt.errors.FuseError: the cell does what cannot be fused; names the operation and says
            what to do.
        TypeError: the cell does not return ``(output, state)``.

    >>> import torch, bptt
    >>> class Leaky(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.of_x, self.of_h = torch.nn.Linear(3, 8), torch.nn.Linear(8, 8, bias=False)
    ...     def forward(self, x, h):
    ...         h = 0.9 * h + 0.1 * torch.relu(self.of_x(x) + self.of_h(h))
    ...         return h, h
    >>> fast = bptt.fuse(Leaky(), torch.zeros(1, 3), torch.zeros(1, 8))
    >>> y, h = fast(torch.randn(50, 4, 3))
    >>> y.shape, h.shape, bptt.kernels.not_native(fast)
    (torch.Size([50, 4, 8]), torch.Size([4, 8]), None)
    """
    if isinstance(cell, nn.RNNBase) or hasattr(cell, "takes_credit"):
        raise FuseError(
            f"bptt.fuse: expected one step, (x_t, state) -> (output, state), got "
            f"{type(cell).__name__}, which runs over sequences already"
        )
    fused = Fused(cell, x_t, state)
    example = fused._example
    for x in example.x:
        if x.shape[:1] != example.state[0].shape[:1]:
            raise FuseError(
                "bptt.fuse: x_t and state must be those of one step, each [batch, ...], got "
                f"{list(x.shape)} and {list(example.state[0].shape)}: of a sequence [T, B, ...] "
                "give inputs[0]"
            )
    for s in example.state:
        if s.dim() != 2 or not s.is_floating_point():
            raise FuseError(
                f"bptt.fuse: the state must be floating-point tensors of shape [batch, units], "
                f"got {s.dtype} of {list(s.shape)}"
            )
    plan, own = fused._plans.find([x[None] for x in example.x], example.state)
    if isinstance(plan, str) and refusal((*example.x, *example.state, *own)) is None:
        raise FuseError(f"bptt.fuse: {plan}")
    return fused
