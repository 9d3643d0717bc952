"""The sLSTM against its paper: with a stabiliser, without, and whichever it begins with."""

from __future__ import annotations

import torch
from cells.from_papers import blocks, check_as_the_paper, given, layer

import bptt


def affine(x, h, block):
    W, b, R, c = block
    return x @ W.T + b + h @ R.T + c


def paper(module, x, state):
    """Equations (8) to (17) and (15) to (17) of the stabiliser; log f is that of the sigmoid."""
    of_i, of_f, of_z, of_o = blocks(module)
    h, c, n, m = (s[0] for s in state)
    all_h = []
    for x_t in x:
        log_i, log_f = affine(x_t, h, of_i), torch.log(torch.sigmoid(affine(x_t, h, of_f)))
        z, o = torch.tanh(affine(x_t, h, of_z)), torch.sigmoid(affine(x_t, h, of_o))
        m_t = torch.max(log_f + m, log_i)
        i, f = torch.exp(log_i - m_t), torch.exp(log_f + m - m_t)
        c, n, m = f * c + i * z, f * n + i, m_t
        h = o * c / n
        all_h.append(h)
    return torch.stack(all_h), h[None], c[None], n[None], m[None]


def unstabilised(module, x, state):
    """c = f c + i z, n = f n + i, h = o c / n with i = exp(.), f = σ(.); [T, B, H]."""
    of_i, of_f, of_z, of_o = blocks(module)
    h, c, n = (s[0] for s in state[:3])
    all_h = []
    for x_t in x:
        i, f = torch.exp(affine(x_t, h, of_i)), torch.sigmoid(affine(x_t, h, of_f))
        z, o = torch.tanh(affine(x_t, h, of_z)), torch.sigmoid(affine(x_t, h, of_o))
        c, n = f * c + i * z, f * n + i
        h = o * c / n
        all_h.append(h)
    return torch.stack(all_h)


def a_state(cell):
    x, (h, c, n, m) = given(cell)
    return x, (h, c, n.detach().abs().add(0.5).requires_grad_(), m)


def test_it_is_that_of_the_paper():
    check_as_the_paper(bptt.cells.SLSTM, paper, scale=2.0, state=a_state(bptt.cells.SLSTM)[1])


def test_the_stabiliser_changes_neither_outputs_nor_gradients():
    module = layer(bptt.cells.SLSTM, scale=2.0)
    x, (h, c, n, _) = a_state(module.cell)
    expected = unstabilised(module, x, (h, c, n))
    wanted = [*module.parameters(), x, h]
    of_expected = torch.autograd.grad(expected.square().sum(), wanted)
    for start in (0.0, -3.0, 5.0):  # the same c and n, divided by exp(m)
        m = torch.full_like(n, start)
        y, _ = module(x, (h, c * (-m).exp(), n * (-m).exp(), m))
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
        of_y = torch.autograd.grad(y.square().sum(), wanted)
        for a, b in zip(of_y, of_expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gates_that_overflow_without_a_stabiliser():
    """Input gates of e^1000 on the way: the state is what they admit, and no number is infinite."""
    module = layer(bptt.cells.SLSTM)
    x, state = a_state(module.cell)
    with torch.no_grad():
        module.bias_ih_l0[:5] = 1000.0
        module.bias_ih_l0[5:10] = -1000.0
    assert not unstabilised(module, x, state).isfinite().all()
    y, _ = module(x, state)
    of_z, of_o = blocks(module)[2:]
    h = torch.cat([state[0], y[:-1]])
    only_now = torch.sigmoid(affine(x, h, of_o)) * torch.tanh(affine(x, h, of_z))
    torch.testing.assert_close(y, only_now)
    for d in torch.autograd.grad(y.sum(), [*module.parameters()]):
        assert d.isfinite().all()


def test_gates_that_are_all_shut():
    """From a state of zeros through input gates of e^-1000: zeros, not 0/0."""
    module = layer(bptt.cells.SLSTM).float()
    with torch.no_grad():
        module.bias_ih_l0[:5] = -1000.0
    y, _ = module(given(module.cell)[0].float())
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-6)
    for d in torch.autograd.grad(y.sum(), [*module.parameters()]):
        assert d.isfinite().all()
