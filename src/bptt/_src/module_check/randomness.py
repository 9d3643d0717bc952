"""Checks of what a module draws and remembers: between calls, between modes, in dropout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bptt._src.flow.untouched import untouched
from bptt._src.layout import declared
from bptt._src.module_check.differences import reference_for
from bptt._src.module_check.gradients import gradients
from bptt._src.module_check.result import Check, WrongNumber, passed, skipped, wrong
from bptt._src.module_check.same import shape_difference, value_difference
from bptt._src.module_check.view import View
from bptt._src.pytree import map_tensors, tensors_of

SEVERAL = 3
"""How often a mask is drawn: a small one may be the same twice by chance."""


def repeats(view: View, where: str, state: Any) -> Check:
    """Check that a second call returns what the first did, and that arguments are not changed.

    Args:
        view: the module, in a mode in which nothing is random, or with the same seed.
        where: which state is given, for the table.
        state: the state.
    """
    name = f"repeats, {where}"
    inputs = map_tensors(Tensor.clone, view.inputs)
    given = map_tensors(Tensor.clone, state)
    results = []
    with untouched(view.holder):
        for has_graph in (True, True, False):
            view.reseed()
            with torch.set_grad_enabled(has_graph):
                results.append(view.raw(inputs, given))
            changed = _changed(view, (inputs, given), state)
            if changed:
                return wrong(name, f"the module changes {changed} in place; it must copy it")
    for again, how in zip(results[1:], ("", ", and without a graph,"), strict=True):
        shapes = shape_difference(again, results[0])
        if shapes:
            return wrong(name, f"called again{how} with the same arguments: {shapes}")
        problem = value_difference(view, again, results[0])
        if problem is not None:
            return wrong(
                name,
                f"called again{how} with the same arguments and the same seed, it returns "
                "something else: it keeps a state in itself, which its arguments do not set",
                problem,
            )
    return passed(name, "the same call gives the same values, with and without a graph")


def _changed(view: View, given: tuple[Any, Any], state: Any) -> str:
    pairs = zip(given, (view.inputs, state), ("its inputs", "the state that it is given"))  # noqa: B905
    for now, before, what in pairs:
        both = zip(tensors_of(now), tensors_of(before), strict=True)
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in both):
            return what
    return ""


@dataclass(frozen=True)
class Modes:
    """What training and evaluation mode have in common."""

    differ: WrongNumber | None
    """The first value in which they differ."""
    evaluation_is_random: WrongNumber | None
    training_is_random: WrongNumber | None
    drops: bool
    """Whether the module says that it drops something in training mode."""

    @classmethod
    def of(cls, view: View) -> Modes:
        """Call the module in both modes, with several seeds."""
        training, evaluating = replace(view, training=True), replace(view, training=False)
        with torch.no_grad():
            calm, busy = _run(evaluating), _run(training)
            random = _varies(evaluating, calm), _varies(training, busy)
        return cls(value_difference(view, busy, calm), *random, _drops(view))

    @property
    def trains(self) -> bool:
        """The mode for checks of different calls: that of training, if nothing is random there."""
        return self.differ is None and self.training_is_random is None

    def check(self) -> Check:
        """Judge both modes."""
        name = "train and eval"
        if self.evaluation_is_random is not None:
            if self.drops:
                says = "in evaluation mode values depend on random numbers; dropout must be off"
                return wrong(name, says, self.evaluation_is_random)
            return passed(name, "it draws random numbers in both modes")
        if self.drops and self.training_is_random is None:
            if self.differ is None:
                return wrong(name, "in training mode nothing is dropped, although it has dropout")
            return wrong(name, "dropout's mask is the same in every call in training mode")
        if self.trains:
            return passed(name, "both modes give the same values, and draw no random numbers")
        return passed(
            name, "evaluation draws no random numbers; training differs (other checks: evaluation)"
        )


def dropout(view: View, exact: View | None, modes: Modes, surrogate: bool | None) -> list[Check]:
    """Check that a mask is drawn anew in each call, and is the same in forward and backward.

    Args:
        view: the module.
        exact: its copy in double precision, if there is one.
        modes: what is random in which mode.
        surrogate: whether its gradient is a surrogate; None: unknown.
    """
    names = "dropout, drawn anew", "dropout, gradients"
    if modes.training_is_random is None:
        why = "it drops nothing: training mode draws no random numbers"
        return [skipped("dropout", why)]
    training = replace(view, training=True)
    other = None if exact is None else replace(exact, training=True)
    with torch.no_grad():
        problem = value_difference(view, _run(training), _run(training))
    if problem is not None:
        why = "it draws from another generator than torch's, so that no call can be repeated"
        return [skipped(name, why) for name in names]
    with torch.no_grad(), untouched(view.holder):
        view.reseed()
        calls = [training.raw(view.inputs, view.state) for _ in range(SEVERAL)]
    if all(value_difference(view, call, calls[0]) is None for call in calls[1:]):
        anew = wrong(names[0], "the mask is the same in every call after one seed")
    else:
        anew = passed(names[0], "each call draws another mask; one seed gives one mask")
    of_mask, _ = gradients(training, reference_for(training, other), {names[1]: None}, surrogate)
    return [anew, *of_mask]


def _run(view: View) -> tuple[Any, Any]:
    return view.whole(view.inputs, view.state)


def _varies(view: View, first: tuple[Any, Any]) -> WrongNumber | None:
    """Find a value that changes with the seed, or from call to call after one seed."""
    for k in range(1, SEVERAL + 1):
        again = _run(replace(view, seed=view.seed + k))
        problem = value_difference(view, again, first)
        if problem is not None:
            return problem
    return None


def _drops(view: View) -> bool:
    """Whether the module declares a dropout that has an effect: torch.nn's, between its layers."""
    p, layers = declared(view.module, "dropout", 0.0), declared(view.module, "num_layers", 2)
    return isinstance(p, float | int) and isinstance(layers, int) and 0 < p < 1 and layers > 1
