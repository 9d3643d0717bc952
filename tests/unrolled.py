"""Modules of all kinds for `bptt.unroll`, and what their gradients have to be, by definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import bptt

T, B, I, H = 7, 2, 3, 4


class Nested(nn.Module):
    """A cell whose state, inputs and outputs are nests, with whole numbers and words in them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(I + H, H)
        self.mix = nn.Linear(2 * H, H, bias=False)
        self.gain = nn.Parameter(torch.tensor(0.9))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.tensor(0.8), requires_grad=False)

    def forward(self, given: Any, state: Any) -> tuple[Any, Any]:
        c, m = state["memory"]
        turn = torch.cos(state["count"].to(c.dtype))[:, None]
        h = torch.tanh(self.read(torch.cat([given["x"], state["fast"]], -1)) * turn)
        c = self.gain * c + h * given["more"][0] * self.frozen
        m = torch.sin(self.mix(torch.cat([c, m], -1)))
        after = {"fast": m - c, "memory": (c, m), "count": state["count"] + 1, "name": "x"}
        output = {"y": m, "rest": (h, c.argmax(-1), "word"), "none": None}
        return output, after


def given_inputs(seed: int = 0) -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Case:
    """A module to unroll, with what it is given."""

    module: nn.Module
    inputs: Any
    state: Any
    wrap: Callable[[nn.Module], Any] = lambda m: m
    """What makes of the module what is unrolled."""
    batch_dim: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> int:
        return int(getattr(self.module, "batch_first", False))

    def leaves(self) -> tuple[Any, Any, list[Tensor]]:
        """Inputs and state afresh, and those tensors of them that gradients are wanted for."""
        nest = pytree.tree_map(
            lambda v: (
                v.clone().requires_grad_(v.is_floating_point()) if isinstance(v, Tensor) else v
            ),
            (self.inputs, self.state),
        )
        found = [v for v in pytree.tree_leaves(nest) if is_float(v)]
        return (*nest, found)

    def losses(self, outputs: Any, final: Any) -> Tensor:
        """L[t, b], of all that the module gives; the final state belongs to the last step."""
        total = torch.zeros(T, B, dtype=torch.float64)
        for n, v in enumerate(v for v in pytree.tree_leaves(outputs) if is_float(v)):
            v = v.transpose(0, 1) if self.time else v
            wave = torch.sin(torch.arange(v.numel(), dtype=v.dtype) + n).view_as(v)
            total = total + (v * wave + v**2).flatten(2).sum(2)
        for s in (s for s in pytree.tree_leaves(final) if is_float(s)):
            s = s.movedim(self.batch_dim, 0).flatten(1)
            last = (0.5 * s**2 + torch.cos(torch.arange(s.shape[1])) * s).sum(1)
            total = total + torch.cat([torch.zeros(T - 1, B), last[None]])
        return total

    def gradients(self, credit: Any = None, memory: Any = None, **options: Any) -> list[Any]:
        """What `bptt.unroll` finds for parameters, inputs and initial state."""
        self.module.zero_grad()
        x, s, leaves = self.leaves()
        options = {"credit": credit, "memory": memory, **self.options, **options}
        outputs, final = bptt.unroll(self.wrap(self.module), x, s, **options)
        self.losses(outputs, final).sum().backward()
        return [p.grad for p in (*self.module.parameters(), *leaves)]

    def expected(self, plan: Any, resets: Tensor | None = None) -> list[Tensor]:
        """What they have to be: the sum of W[t, s] · C[t, s], and the same for x and state."""
        W = torch.from_numpy(plan.matrix()).expand(B, T, T)
        of_initial = torch.from_numpy(plan.of_initial_state()).expand(B, T)
        terms = self.terms(resets)
        names = dict(self.module.named_parameters())
        found = [torch.einsum("bts,bts...->...", W, terms[name]) for name in names]
        for kind, weight in (("x", W), ("s", of_initial)):
            n = 0
            while (kind, n) in terms:
                if kind == "x":
                    g = torch.einsum("bts,bts...->s...", weight, terms[kind, n])
                    found.append(g.transpose(0, 1) if self.time else g)
                else:
                    found.append(torch.einsum("bt,bt...->...", weight, terms[kind, n]))
                n += 1
        return found

    def terms(self, resets: Tensor | None = None) -> dict[Any, Tensor]:
        """∂L[t, b] to each step's own copy of the parameters and inputs, and to the state."""
        names = [n for n, p in self.module.named_parameters()]
        copies = [
            {n: p.detach().clone().requires_grad_() for n, p in self.module.named_parameters()}
            for _ in range(T)
        ]
        _, state, _ = self.leaves()
        initial = [s for s in pytree.tree_leaves(state) if is_float(s)]
        xs, pieces, outputs = [], [], []
        for t in range(T):
            piece = pytree.tree_map(
                lambda v, t=t: v.narrow(self.time, t, 1).clone().requires_grad_(), self.inputs
            )
            pieces.append(piece)
            xs.append(pytree.tree_leaves(piece))
            if resets is not None:
                at = resets[t].expand(B)
                state = pytree.tree_map(lambda s, at=at: self._zero(s, at), state)
            y, state = functional_call(self.module, copies[t], (piece, state))
            outputs.append(y)
        flat = [pytree.tree_leaves(y) for y in outputs]
        joined = [torch.cat(v, self.time) for v in zip(*flat, strict=True) if is_float(v[0])]
        L = self.losses(joined, state)
        flat_inputs = [c[n] for c in copies for n in names] + [x for step in xs for x in step]
        flat_inputs += initial
        rows = [
            torch.autograd.grad(
                L[t, b], flat_inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for b in range(B)
            for t in range(T)
        ]
        columns = [torch.stack(c).view(B, T, *c[0].shape) for c in zip(*rows, strict=True)]
        P, X = len(names), len(xs[0])
        found: dict[Any, Tensor] = {
            n: torch.stack(columns[k : P * T : P], 2) for k, n in enumerate(names)
        }
        for k in range(X):
            steps = [c.squeeze(2 + self.time) for c in columns[P * T + k : P * T + X * T : X]]
            found["x", k] = torch.stack(steps, 2)
        for k, c in enumerate(columns[P * T + X * T :]):
            found["s", k] = c
        return found

    def _zero(self, s: Any, at: Tensor) -> Any:
        if not isinstance(s, Tensor):
            return s
        at = at.view(-1, *(1,) * (s.dim() - self.batch_dim - 1))
        return torch.where(at, torch.zeros_like(s), s)


def is_float(v: Any) -> bool:
    return isinstance(v, Tensor) and v.is_floating_point()


def prepared(module: nn.Module) -> nn.Module:
    """Float64, and large recurrent weights, so that gradients reach far back."""
    generator = torch.Generator().manual_seed(5)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            if p.dim():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
                p *= 1.6 / math.sqrt(p.shape[1]) if p.dim() == 2 else 0.3
    return module


def noise(*shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(9)).double()


def _step_by_step(module: nn.Module, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A plain loop; the module's forward is not used by the one that knows its parameters."""
    outputs = []
    for x_t in x:
        h = module.get_submodule("cell")(x_t, h)
        outputs.append(h)
    return torch.stack(outputs), h


class _Elman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _step_by_step(self, x, h)


def _functional(module: nn.Module) -> Any:
    parameters = dict(module.named_parameters())
    return lambda x, s: functional_call(module, parameters, (x, s))


def _a_lambda(module: nn.Module) -> Any:
    return lambda x, s: module(x, s)


def _a_function(module: nn.Module) -> Any:
    def function(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _step_by_step(module, x, h)

    return function


def make(kind: str) -> Case:
    """Build one of the kinds."""
    x = given_inputs()
    if kind == "nested":
        batch = {"fast": noise(B, H), "memory": (noise(B, H), noise(B, H) + 0.2)}
        state = {**batch, "count": torch.tensor([0, 2]), "name": "x"}
        inputs = {"x": x, "more": [given_inputs(1)[..., :1]]}
        return Case(prepared(bptt.Stepwise(Nested())), inputs, state, batch_dim=0)
    if kind in ("LSTMCell", "GRUCell", "RNNCell"):
        state = (noise(B, H), noise(B, H) + 0.1) if kind == "LSTMCell" else noise(B, H)
        module = bptt.Stepwise(getattr(nn, kind)(I, H))
        return Case(prepared(module), x, state, batch_dim=0)
    if kind in ("function", "lambda", "functional_call"):
        wrap = {"function": _a_function, "lambda": _a_lambda, "functional_call": _functional}
        options = {"state_batch_dim": 0}
        return Case(prepared(_Elman()), x, noise(B, H), wrap[kind], batch_dim=0, options=options)
    family, name, layers, *more = kind.split("-")
    options = {"batch_first": "batch_first" in more, "num_layers": int(layers)}
    if "projected" in more:
        options["proj_size"] = 2
    module = getattr({"bptt": bptt, "nn": nn}[family], name)(I, H, **options)
    h = noise(int(layers), B, options.get("proj_size", H))
    state = (h, noise(int(layers), B, H) + 0.1) if name == "LSTM" else h
    inputs = x.transpose(0, 1).contiguous() if options["batch_first"] else x
    return Case(prepared(module), inputs, state)


KINDS = [
    "bptt-RNN-1",
    "bptt-GRU-2-batch_first",
    "bptt-LSTM-1-projected",
    "nn-RNN-1",
    "nn-GRU-2-batch_first",
    "nn-LSTM-2-projected",
    "LSTMCell",
    "nested",
    "function",
    "lambda",
    "functional_call",
]

_terms = Case.terms


@cache
def case_of(kind: str) -> Case:
    """A case whose terms are computed once."""
    case = make(kind)
    memo: dict[Any, Any] = {}

    def terms(resets: Tensor | None = None) -> Any:
        key = None if resets is None else str(resets.tolist())
        if key not in memo:
            memo[key] = _terms(case, resets)
        return memo[key]

    case.terms = terms  # type: ignore[method-assign]
    return case
