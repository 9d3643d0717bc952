"""Which weights over the terms C[t, s] a computed gradient has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bptt._src.explain.explanation import Explanation
from bptt._src.explain.solving import Equations, is_single, solve
from bptt._src.explain.terms import terms_of
from bptt._src.flow.given import Given
from bptt._src.layout import Layout, unwrapped
from bptt._src.pytree import map_tensors
from bptt.errors import ConfigError

FUNCTION = "bptt.explain_gradient"
MOST_STEPS = 32
MOST_DATA_SETS = 32
"""Drawn, where the gradient is a function."""
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error of a gradient that was computed in numbers of a dtype."""


def explain_gradient(
    module: Any,
    inputs: Any,
    loss_fn: Any,
    gradient: Any,
    *,
    state: Any = None,
    parameters: dict[str, Tensor] | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
    batch_first: bool | None = None,
    state_batch_dim: int | None = None,
) -> Explanation:
    """Solve a gradient that was computed elsewhere for its weights: ĝ = Σ W[t, s] C[t, s].

    C[t, s] is what flows from the loss at step t back to the use of the parameters at step s, by
    autograd in float64, step by step. The gradient may be that of a kernel, of NumPy code, of a
    framework: its weights say whether it is full, truncated, in windows, counted twice... Where the
    residual says that no weights explain it, the mistake is another one, and no weights are given.

    One short sequence rarely determines T (T + 1) / 2 weights. So give several data sets, as lists,
    or, best, a function that computes the gradient: then the rows of the inputs are dealt anew over
    steps and sequences, until the data determine all weights or do so no better.

    Args:
        module: a module as for :func:`bptt.unroll`, which says what is right. A copy of it is run,
            in float64 and in evaluation mode: compute the gradient without dropout, too.
        inputs: [T, B, ...], T up to 32, or a pytree of such; a list is several data sets.
        loss_fn: ``outputs -> scalar``, on outputs of float64; or a list, one for each data set.
        gradient: the gradients by the names of the parameters, ``{"weight_hh_l0": array}``, NumPy's
            or torch's, in the parameters' shapes; only those that are there are explained. Or a
            list, one for each data set; or a function ``inputs -> gradients``.
        state: the initial state; None if the module makes its own.
        parameters: the parameters by name, float64, where the module is a function.
        tolerance: the relative error of the gradients that rounding explains; by default it follows
            from their dtype, 1e-9 for float64 and 1e-5 for float32.
        generator: of the data that are drawn; by default one of a fixed seed.
        batch_first: whether inputs are [B, T, ...]; by default the module's own attribute.
        state_batch_dim: the batch dimension of each of the state's tensors.

    Raises:
        ConfigError: a name, a shape or a number of data sets does not fit; there are too many
            steps; the loss is no scalar or depends on no output.
        TypeError: the module does not return ``(outputs, state)``.
        ValueError: the module keeps or detaches its state, or has two directions.

    >>> import torch, bptt
    >>> rnn = bptt.RNN(3, 6)
    >>> def truncated(x):  # what a kernel might compute
    ...     y, _ = bptt.unroll(rnn, x, credit=bptt.Truncated(4))
    ...     return {"weight_hh_l0": torch.autograd.grad(y.square().sum(), rnn.weight_hh_l0)[0]}
    >>> x = torch.randn(8, 1, 3)
    >>> found = bptt.explain_gradient(rnn, x, lambda y: y.square().sum(), truncated)
    >>> found.rank, found.unknowns, bool(found.residual < 1e-5)
    (28, 28, True)
    >>> print(str(found).splitlines()[-9])
    weight_hh_l0: windows of 4 steps: nothing comes back into step 3.
    """
    reference, named = _reference(module, parameters)

    def given(x: Any) -> Given:
        return Given.of(
            FUNCTION,
            reference,
            _double(x),
            _double(state),
            batch_first=batch_first,
            state_batch_dim=state_batch_dim,
        )

    found = _Collected(given, named, tolerance)
    if not callable(gradient):
        for x, loss, g in _data_sets(inputs, loss_fn, gradient):
            found.add(x, loss, g)
        return found.explained()
    if isinstance(inputs, list) or not callable(loss_fn):
        raise ConfigError(
            f"{FUNCTION}: with a function as the gradient, give the inputs of one data set and one "
            "loss_fn; more data are drawn"
        )
    layout = given(inputs).layout
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    found.add(inputs, loss_fn, gradient(inputs))
    wanted, before = found.wanted(), -1
    while True:
        while found.count < wanted:
            x = _dealt_anew(inputs, layout, generator)
            found.add(x, loss_fn, gradient(x))
        explained = found.explained()
        total, known = explained.total, int(np.isfinite(explained.total.values).sum())
        is_decided = total.is_determined or (not total.is_weights and total.rank < total.equations)
        if is_decided or known <= before or wanted == MOST_DATA_SETS:
            return explained
        wanted, before = min(2 * wanted, MOST_DATA_SETS), known


class _Collected:
    """The equations of all data sets so far.

    Args:
        given: checks inputs.
        named: the parameters by name.
        tolerance: of the gradients; None if it follows from their dtype.
    """

    def __init__(
        self, given: Callable[[Any], Given], named: dict[str, Tensor], tolerance: float | None
    ) -> None:
        self.given, self.named, self.tolerance = given, named, tolerance
        self.equations: dict[str, list[Equations]] = {}
        self.rounding, self.count, self.steps = 0.0, 0, 0

    def add(self, inputs: Any, loss_fn: Callable[[Any], Tensor], gradient: Any) -> None:
        """Add a data set."""
        given = self.given(inputs)
        self._check_steps(given.layout.steps)
        gradients = _checked(gradient, self.named)
        if self.equations and gradients.keys() != self.equations.keys():
            raise ConfigError(
                f"{FUNCTION}: the first data set has the gradients of {', '.join(self.equations)}, "
                f"another one those of {', '.join(gradients)}; give the same of all"
            )
        with torch.backends.cudnn.flags(enabled=False):  # its backward pass needs training mode
            terms = terms_of(given, loss_fn, [self.named[name] for name in gradients])
        for (name, g), C in zip(gradients.items(), terms, strict=True):
            self.rounding = max(self.rounding, ROUNDING.get(g.dtype, ROUNDING[torch.float64]))
            row = g.detach().double().cpu().numpy().ravel()
            self.equations.setdefault(name, []).append(Equations(C.cpu().numpy(), row))
        self.count += 1

    def _check_steps(self, steps: int) -> None:
        if steps > MOST_STEPS:
            raise ConfigError(
                f"{FUNCTION}: {steps} steps have {steps * (steps + 1) // 2} weights; take a piece "
                f"of {MOST_STEPS} steps at most"
            )
        if self.count and steps != self.steps:
            raise ConfigError(
                f"{FUNCTION}: the data sets have {self.steps} and {steps} steps; give them the same"
            )
        self.steps = steps

    def wanted(self) -> int:
        """Return how many data sets give each parameter twice as many equations as weights."""
        fewest = min(len(of_one[0].gradient) for of_one in self.equations.values())
        return min(MOST_DATA_SETS, max(3, -(-self.steps * (self.steps + 1) // fewest)))

    def explained(self) -> Explanation:
        """Solve for the weights: of each parameter alone, and of all together."""
        all_of_them = [e for of_one in self.equations.values() for e in of_one]
        tolerance = self.tolerance
        if tolerance is None:
            single = is_single([e.gradient for e in all_of_them])
            tolerance = max(self.rounding, ROUNDING[torch.float32] if single else 0.0)
        of_each = {name: solve(of_one, tolerance) for name, of_one in self.equations.items()}
        return Explanation(solve(all_of_them, tolerance), of_each, self.count)


def _reference(module: Any, given: dict[str, Tensor] | None) -> tuple[Any, dict[str, Tensor]]:
    """Return what says what is right, in float64, and its parameters by name."""
    if not isinstance(module, nn.Module):
        wrong = [k for k, p in (given or {}).items() if p.dtype != torch.float64]
        if not given or wrong:
            raise ConfigError(
                f"{FUNCTION}: {type(module).__name__} is no nn.Module; give its parameters by "
                f"name, in float64: parameters={{'w': w}}{f', not {wrong[0]}' if wrong else ''}"
            )
        return module, {name: p.requires_grad_() for name, p in given.items()}
    if given is not None:
        raise ConfigError(f"{FUNCTION}: parameters= is for functions; a module has its own")
    reference = copy.deepcopy(unwrapped(module)).double().eval()
    return reference, {name: p.requires_grad_() for name, p in reference.named_parameters()}


def _data_sets(inputs: Any, loss_fn: Any, gradient: Any) -> Iterator[tuple[Any, Any, Any]]:
    if not isinstance(inputs, list):
        inputs, gradient = [inputs], [gradient]
    losses = list(loss_fn) if isinstance(loss_fn, list | tuple) else [loss_fn] * len(inputs)
    gradients = list(gradient) if isinstance(gradient, list | tuple) else [gradient]
    if not inputs or not len(inputs) == len(losses) == len(gradients):
        raise ConfigError(
            f"{FUNCTION}: got {len(inputs)} inputs, {len(losses)} losses and {len(gradients)} "
            "gradients; give one of each for each data set"
        )
    yield from zip(inputs, losses, gradients, strict=True)


def _checked(gradient: Any, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients as tensors of the parameters' shapes.

    Raises:
        ConfigError: there is none, one belongs to no parameter, or has another shape or NaNs.
    """
    if not isinstance(gradient, Mapping) or not gradient:
        raise ConfigError(
            f"{FUNCTION}: expected gradients by name, {{{next(iter(named), 'name')!r}: array}}, "
            f"got {'an empty dictionary' if gradient == {} else type(gradient).__name__}"
        )
    found = {}
    for name, value in gradient.items():
        if name not in named:
            raise ConfigError(
                f"{FUNCTION}: there is no parameter {name!r}; there are {', '.join(named)}"
            )
        g, shape = torch.as_tensor(value), tuple(named[name].shape)
        if tuple(g.shape) != shape or not g.is_floating_point():
            turned = "; transpose it" if tuple(g.shape) == shape[::-1] else ""
            raise ConfigError(
                f"{FUNCTION}: the gradient of {name} is {tuple(g.shape)} {g.dtype}, expected "
                f"{shape} of floating-point numbers{turned}"
            )
        if not bool(torch.isfinite(g).all()):
            raise ConfigError(f"{FUNCTION}: the gradient of {name} has entries that are not finite")
        found[name] = g
    return found


def _double(tree: Any) -> Any:
    return map_tensors(lambda v: v.double() if v.is_floating_point() else v, tree)


def _dealt_anew(inputs: Any, layout: Layout, generator: torch.Generator) -> Any:
    """Deal the rows of the inputs anew over steps and sequences."""
    T, B = layout.steps, layout.batch or 1
    order = torch.randperm(T * B, generator=generator)

    def dealt(v: Tensor) -> Tensor:
        if layout.batch is None:
            return v[order.to(v.device)]
        rows = v.transpose(0, layout.time).flatten(0, 1)[order.to(v.device)]
        return rows.view(T, B, *rows.shape[1:]).transpose(0, layout.time)

    return map_tensors(dealt, inputs)
