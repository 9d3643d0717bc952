"""The module that is audited: found by its path, itself, its class or a predicate; its calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from bptt._src.layout import unwrapped
from bptt._src.uncompiled import uncompiled
from bptt._src.unroll.observed import observed

Heard = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], Any]
"""``(module, its forward, arguments, keyword arguments, unrolled) -> what the forward returns``;
``unrolled`` is the module that bptt.unroll was given, if the call is one of it, or None."""


class Subject:
    """Which module is meant.

    Args:
        model: what a path leads from; or, without a path, the module, a class or a predicate.
        path: attributes and indices, such as ``"encoder.layers.0"``; or as ``model`` without it.

    Raises:
        TypeError: what is given is none of these.
        ValueError: the path leads nowhere, or to something that is no module.
    """

    def __init__(self, model: Any, path: Any = None) -> None:
        which = model if path is None else path
        if isinstance(which, str):
            which = _follow(model, which)
        self.types: set[type] = set()
        self.module: nn.Module | None = None
        """The one that is meant, if it is known before."""
        self.matches: Callable[[nn.Module], bool]
        if isinstance(which, nn.Module):
            module = unwrapped(which)
            if isinstance(module, torch.jit.ScriptModule):
                raise TypeError(
                    "bptt.audit: the module is a torch.jit.ScriptModule, whose calls cannot be "
                    "heard; audit the module that it was scripted from"
                )
            self.matches, self.name = lambda m: m is module, type(module).__name__
            self.types.add(type(module))
            self.module = module
        elif isinstance(which, type) and issubclass(which, nn.Module):
            self.matches, self.name = lambda m: isinstance(m, which), which.__name__
            self.types |= _with_subclasses(which)
        elif callable(which):
            self.matches, self.name = which, getattr(which, "__name__", repr(which))
        else:
            raise TypeError(
                "bptt.audit: expected a module, a class of modules, a predicate, or a model and "
                f"the path of a module in it, such as 'encoder.rnn'; got {which!r}"
            )

    @contextmanager
    def heard_by(self, hear: Heard) -> Iterator[None]:
        """Hand each call of a module that matches to ``hear``, until the end of the block.

        Classes are changed, so that a module that is copied meanwhile takes nothing along; and
        modules that have a forward of their own.
        """
        within: set[int] = set()
        with ExitStack() as stack:

            def of(module: nn.Module, forward: Any, args: Any, options: Any) -> Any:
                if id(module) in within or not self.matches(module):
                    return forward(*args, **options)
                within.add(id(module))
                try:
                    return hear(module, forward, args, options, None)
                finally:
                    within.discard(id(module))

            changed: set[type] = set()

            def change(kind: type) -> None:
                if kind not in changed:
                    changed.add(kind)
                    stack.enter_context(_forward_changed(kind, of))

            def change_module(module: nn.Module) -> None:
                change(type(module))
                if "forward" in vars(module):
                    stack.enter_context(_own_forward_changed(module, of))

            for kind in self.types:
                change(kind)
            if self.module is not None:
                change_module(self.module)
            else:
                stack.enter_context(_calls_seen(self.matches, change_module))

            def unrolled(module: Any, run: Any, inputs: Any, state: Any, **options: Any) -> Any:
                inside = module.modules() if isinstance(module, nn.Module) else ()
                mine = [m for m in inside if self.matches(m) and id(m) not in within]
                if len(mine) != 1:  # none; or a network of several, which are heard one by one
                    return run(inputs, state, **options)
                within.add(id(mine[0]))
                try:
                    return hear(mine[0], run, (inputs, state), options, module)
                finally:
                    within.discard(id(mine[0]))

            stack.enter_context(observed(unrolled))
            yield


def _with_subclasses(kind: type[Any]) -> set[type[Any]]:
    found: set[type[Any]] = {kind}
    for each in kind.__subclasses__():
        found |= _with_subclasses(each)
    return found


def _follow(model: Any, path: str) -> Any:
    """Follow a path of attributes and indices."""
    found, walked = model, ""
    for name in path.split("."):
        try:
            if name.lstrip("-").isdigit():
                found = found[int(name)]
            else:
                found = found[name] if isinstance(found, Mapping) else getattr(found, name)
        except (AttributeError, IndexError, KeyError, TypeError):
            here = f"{walked} is a" if walked else "the model is a"
            inside = dict(found.named_children()) if isinstance(found, nn.Module) else {}
            raise ValueError(
                f"bptt.audit: there is no {name!r} on the path {path!r}: {here} "
                f"{type(found).__name__}" + (f" with {', '.join(inside)}" if inside else "")
            ) from None
        walked = f"{walked}.{name}" if walked else name
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"bptt.audit: the path {path!r} leads to a {type(found).__name__}, not to a module"
        )
    return found


@contextmanager
def _forward_changed(kind: Any, of: Callable[..., Any]) -> Iterator[None]:
    """Change the forward of a class for a while."""
    own = kind.__dict__.get("forward")
    before = kind.forward

    @uncompiled
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return before(self, *args, **options)

        return of(self, call, args, options)

    forward.__signature__ = _signature(before)  # type: ignore[attr-defined]
    kind.forward = forward
    try:
        yield
    finally:
        if own is None:
            del kind.forward
        else:
            kind.forward = own


@contextmanager
def _own_forward_changed(module: nn.Module, of: Callable[..., Any]) -> Iterator[None]:
    """Change the forward that a module was given itself, as by a library that wraps it."""
    before: Any = vars(module)["forward"]

    @uncompiled
    def forward(*args: Any, **options: Any) -> Any:
        return of(module, before, args, options)

    forward.__signature__ = _signature(before)  # type: ignore[attr-defined]
    module.forward = forward
    try:
        yield
    finally:
        module.forward = before


def _signature(function: Any) -> Any:
    try:
        return inspect.signature(function)
    except ValueError:  # written in C
        return None


@contextmanager
def _calls_seen(
    matches: Callable[[nn.Module], bool], change: Callable[[nn.Module], None]
) -> Iterator[None]:
    """Change modules that match when they are first called."""
    before, changed = nn.Module.__call__, set()

    def call(self: nn.Module, *args: Any, **options: Any) -> Any:
        if self not in changed and matches(self):
            changed.add(self)
            change(self)
        return before(self, *args, **options)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = before  # type: ignore[method-assign]
