"""The closed-form continuous-time network at irregular times, run by ``bptt.fuse``."""

from __future__ import annotations

import torch

import bptt

I, H, Z, T, B = 3, 4, 6, 7, 2
F64 = {"dtype": torch.float64}


def fused():
    torch.manual_seed(0)
    cell = bptt.cells.CfCCell(I, H, Z, **F64)
    example = (torch.zeros(1, I, **F64), torch.ones(1, **F64)), torch.zeros(1, H, **F64)
    return cell, bptt.fuse(cell, *example)


def given():
    torch.manual_seed(1)
    x, elapsed = torch.randn(T, B, I, **F64), 3 * torch.rand(T, B, **F64)
    return x.requires_grad_(), elapsed.requires_grad_()


def paper(cell, x, elapsed, h):
    """σ(-f Δ) ⊙ g + (1 - σ(-f Δ)) ⊙ h, with f, g and h on top of one first layer."""
    W_f, W_g, W_k = cell.of_z.weight.split(H)
    b_f, b_g, b_k = cell.of_z.bias.split(H)
    found = []
    for x_t, dt in zip(x, elapsed, strict=True):
        both = torch.cat([cell.of_x.weight, cell.of_h.weight], 1)
        z = torch.tanh(torch.cat([x_t, h], 1) @ both.T + cell.of_x.bias)
        decay = torch.sigmoid(-(z @ W_f.T + b_f) * dt[:, None])
        h = decay * torch.tanh(z @ W_g.T + b_g) + (1 - decay) * torch.tanh(z @ W_k.T + b_k)
        found.append(h)
    return torch.stack(found)


def test_it_is_the_papers_equation_with_all_gradients():
    cell, network = fused()
    x, elapsed = given()
    h_0 = torch.randn(B, H, **F64, requires_grad=True)
    leaves = [x, elapsed, h_0, *cell.parameters()]
    y, h_n = network((x, elapsed), h_0)
    expected, of = paper(cell, x, elapsed, h_0), torch.randn_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(h_n, y[-1])
    found = torch.autograd.grad((y * of).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad((expected * of).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert bptt.kernels.not_native(network) is None


def test_the_gradient_of_the_elapsed_time_is_that_of_finite_differences():
    _, network = fused()
    x, elapsed = given()
    assert torch.autograd.gradcheck(lambda dt: network((x.detach(), dt))[0], (elapsed,))


def test_at_once_it_is_halfway_and_after_long_in_the_limit():
    """σ(0) = 1/2; and where f > 0, σ(-f Δ) vanishes."""
    cell, network = fused()
    x, _ = given()
    with torch.no_grad():
        cell.of_z.bias[:H] = 100.0  # f
        z = torch.tanh(cell.of_x(x[:1]))
        _, g, k = cell.of_z(z).chunk(3, -1)
        at_once, _ = network((x[:1], torch.zeros(1, B, **F64)))
        late, _ = network((x[:1], torch.full((1, B), 50.0, **F64)))
    torch.testing.assert_close(at_once, (g.tanh() + k.tanh()) / 2)
    torch.testing.assert_close(late, k.tanh())


def test_the_time_between_observations_matters():
    _, network = fused()
    x, elapsed = given()
    assert not torch.allclose(network((x, elapsed))[0], network((x, elapsed.roll(1, 0)))[0])
