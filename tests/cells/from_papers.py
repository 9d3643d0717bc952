"""What the tests of single cells share: a layer, its results, and those of a loop beside it."""

from __future__ import annotations

import torch
from torch import Tensor

import bptt

I, H, B, T = 3, 5, 2, 7


def layer(cell, scale=1.0, **options):
    """A layer in float64, whose weights are drawn from a seed, larger by a factor."""
    torch.manual_seed(0)
    module = bptt.Recurrent(cell, I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in module.parameters():
            p *= scale
    return module


def given(cell, steps=T):
    """Inputs [T, B, I] and an initial state, each [1, B, H], that require gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(steps, B, I), *[(1, B, H)] * cell.states]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    x, *state = (t.requires_grad_() for t in drawn)
    return x, tuple(state)


def blocks(module):
    """W_i, b_i, W_h, b_h of each block."""
    cell = module.cell
    of_x = zip(
        module.weight_ih_l0.chunk(cell.gates_x), module.bias_ih_l0.chunk(cell.gates_x), strict=True
    )
    if not cell.gates_h:
        return list(of_x)
    of_h = zip(
        module.weight_hh_l0.chunk(cell.gates_h), module.bias_hh_l0.chunk(cell.gates_h), strict=True
    )
    return [(*x, *h) for x, h in zip(of_x, of_h, strict=True)]


def gradients(outputs, module, x, state):
    """Those of a loss in which each number counts differently, also of x and the states."""
    loss = sum((t.sin() * torch.linspace(0.5, 1.5, t.numel()).view_as(t)).sum() for t in outputs)
    wanted = [p for p in module.parameters() if p.numel()]
    return torch.autograd.grad(
        loss, [*wanted, x, *state], allow_unused=True, materialize_grads=True
    )


def by_its_equations(module, x, state):
    """Outputs [T, B, H] and the final states, by the steps of the module's cell under autograd."""
    w, s, y = module._weights(0, False), tuple(t[0] for t in state), []
    for x_t in x:
        s = module.cell.step(x_t, s, w)
        y.append(s[0])
    return (torch.stack(y), *(t.unsqueeze(0) for t in s))


def check_as_the_paper(cell, paper, scale=1.0, state=None):
    """Compare module, equations and paper, with all gradients, on the kernels and on the twin.

    Args:
        cell: the cell.
        paper: ``(module, x, state) -> (outputs, *final states)``, shaped as the module's.
        scale: a factor of the weights.
        state: the initial state, in place of a random one.
    """
    module = layer(cell, scale)
    if bptt.kernels.backend().name == "native":
        assert bptt.kernels.not_native(module) is None
    x, drawn = given(cell)
    state = drawn if state is None else state

    def of_module(module: torch.nn.Module, x: Tensor, state: tuple[Tensor, ...]):
        y, final = module(x, state if len(state) > 1 else state[0])
        return (y, *final) if len(state) > 1 else (y, final)

    expected = paper(module, x, state)
    of_paper = gradients(expected, module, x, state)
    assert all(d.abs().sum() > 0 for d in of_paper[:1])
    for run in (by_its_equations, of_module):
        for kernels in ("auto", "twin"):
            with bptt.kernels.use(kernels):
                found = run(module, x, state)
                of_run = gradients(found, module, x, state)
            for a, b in zip((*found, *of_run), (*expected, *of_paper), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
