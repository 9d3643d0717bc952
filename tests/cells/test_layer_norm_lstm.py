"""The LSTM with layer normalisation, written out from its paper, number by number."""

from __future__ import annotations

import torch
from torch import Tensor

import bptt


def LN(z: Tensor, alpha: Tensor, beta: Tensor, eps: float) -> Tensor:
    mean = z.sum() / len(z)
    variance = ((z - mean) ** 2).sum() / len(z)
    return (z - mean) / torch.sqrt(variance + eps) * alpha + beta


def fused(cell: bptt.cells.LayerNormLSTMCell, I: int, H: int) -> bptt.Fused:
    zeros = torch.zeros(1, H, dtype=torch.float64)
    return bptt.fuse(cell, torch.zeros(1, I, dtype=torch.float64), (zeros, zeros))


def test_as_the_paper_has_it():
    """Equations 20 to 22, for one sequence, with the gradient of all that it has."""
    torch.manual_seed(0)
    T, I, H = 7, 3, 5
    cell = bptt.cells.LayerNormLSTMCell(I, H, dtype=torch.float64)
    for p in cell.parameters():
        torch.nn.init.uniform_(p, -0.9, 0.9)
    lstm = fused(cell, I, H)
    assert bptt.kernels.not_native(lstm) is None
    x = torch.randn(T, 1, I, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(1, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    h, c, eps = state[0][0], state[1][0], cell.norm_c.eps
    expected = []
    for t in range(T):
        a = LN(cell.of_h.weight @ h, cell.norm_h.weight, cell.norm_h.bias, eps)
        a = a + LN(cell.of_x.weight @ x[t, 0], cell.norm_x.weight, cell.norm_x.bias, eps)
        i, f, g, o = (a + cell.bias).view(4, H)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(LN(c, cell.norm_c.weight, cell.norm_c.bias, eps))
        expected.append(h)
    y, _ = lstm(x, state)
    torch.testing.assert_close(y[:, 0], torch.stack(expected), rtol=0, atol=1e-12)
    wanted = [x, *state, *cell.parameters()]
    ours = torch.autograd.grad(y.cos().sum(), wanted)
    theirs = torch.autograd.grad(torch.stack(expected).cos().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_it_does_not_see_the_scale_of_its_weights():
    """Normalised, a product does not change with the scale of all its weights (section 5.1)."""
    torch.manual_seed(0)
    cell = bptt.cells.LayerNormLSTMCell(3, 5, eps=0.0, dtype=torch.float64)
    lstm, x = fused(cell, 3, 5), torch.randn(6, 2, 3, dtype=torch.float64)
    h = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    before = lstm(x, h)[0]
    with torch.no_grad():
        cell.of_x.weight *= 7
        cell.of_h.weight *= 0.01
    torch.testing.assert_close(lstm(x, h)[0], before, rtol=0, atol=1e-10)
