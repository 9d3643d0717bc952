"""The linear recurrent unit against its closed form in complex numbers; its initial weights."""

from __future__ import annotations

import math

import pytest
import torch

import bptt
from bptt.errors import ConfigError

double = {"dtype": torch.float64}


def closed_form(recurrent, x, s_0):
    """s_t = λ^t s_0 + Σ_s λ^(t-s) exp(γ) ⊙ (B x_s + b), all t at once; [T, B, H] complex."""
    nu, theta, gamma = recurrent.weight_units_l0
    B = torch.complex(*recurrent.weight_ih_l0.chunk(2))
    log_size, angle = -nu.exp(), theta.exp()
    steps = torch.arange(1, len(x) + 1, **double)
    lags = (steps[:, None] - steps).clamp(min=0)[..., None]
    powers = torch.polar((lags * log_size).exp(), lags * angle)  # [T, T, H]
    powers = powers * (steps[:, None] >= steps)[..., None]
    drive = x.to(B.dtype) @ B.t()
    if recurrent.bias:
        drive = drive + torch.complex(*recurrent.bias_ih_l0.chunk(2))
    first = torch.polar((steps[:, None] * log_size).exp(), steps[:, None] * angle)
    return first[:, None] * s_0 + torch.einsum("tsh,sbh->tbh", powers, gamma.exp() * drive)


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_and_its_gradient(bias):
    torch.manual_seed(0)
    module = bptt.Recurrent(bptt.cells.LRU, 3, 5, bias=bias, **double)
    if bias:
        torch.nn.init.normal_(module.bias_ih_l0)
    x, state = torch.randn(9, 2, 3, **double), torch.randn(2, 1, 2, 5, **double)
    y, (h, k), ((each_h, each_k),) = module(x, tuple(state), return_states=True)
    expected = closed_form(module, x, torch.complex(*state[:, 0]))
    torch.testing.assert_close(torch.complex(each_h, each_k), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.complex(h, k)[0], expected[-1], rtol=1e-12, atol=1e-12)
    assert torch.equal(y, each_h)
    wanted = [p for p in module.parameters() if p.numel()]
    ours = torch.autograd.grad(each_h.cos().sum() + each_k.sin().sum(), wanted)
    theirs = torch.autograd.grad(expected.real.cos().sum() + expected.imag.sin().sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_the_output_of_the_layer_sees_both_parts_of_the_state():
    """y_t = Re(C s_t) + D x_t, in each layout."""
    torch.manual_seed(0)
    layer = bptt.LRU(3, 5, 4, **double)
    x = torch.randn(9, 2, 3, **double)
    y, (h, k) = layer(x)
    s = closed_form(layer.recurrent, x, torch.zeros(2, 5, dtype=torch.complex128))
    C = torch.complex(layer.of_state.weight[:, :5], -layer.of_state.weight[:, 5:])
    expected = (s @ C.t()).real + x @ layer.of_input.weight.t()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.complex(h, k)[0], s[-1], rtol=1e-12, atol=1e-12)
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:4, 1]])
    out, lengths = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0])
    torch.testing.assert_close(out[:, 0], y[:, 0])
    torch.testing.assert_close(out[:4, 1], y[:4, 1])
    assert lengths.tolist() == [9, 4]
    first = bptt.LRU(3, 5, 4, batch_first=True, **double)
    first.load_state_dict(layer.state_dict())
    torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), y)


def test_a_credit_cuts_it():
    torch.manual_seed(0)
    layer, x = bptt.LRU(3, 5, **double), torch.randn(6, 2, 3, **double)
    grads = [
        torch.autograd.grad(run()[0].square().sum(), layer.recurrent.weight_units_l0)[0]
        for run in (
            lambda: layer(x, credit="truncated:2"),
            lambda: bptt.unroll(layer, x, credit="truncated:2"),
            lambda: layer(x),
        )
    ]
    torch.testing.assert_close(*grads[:2])
    assert not torch.allclose(grads[0], grads[2], rtol=1e-3)


def test_the_initial_weights_are_the_papers():
    """λ is uniform on the ring, so |λ|² is; γ² = 1 - |λ|²; Re B and Im B have variance 1/(2 I)."""
    torch.manual_seed(0)
    n, (low, high, phase) = 4000, (0.5, 0.9, 1.0)
    layer = bptt.LRU(50, n, 2, r_min=low, r_max=high, max_phase=phase, **double)
    nu, theta, gamma = layer.recurrent.weight_units_l0.detach()
    squared = (-2 * nu.exp()).exp()
    torch.testing.assert_close((2 * gamma).exp(), 1 - squared)
    for uniform, a, b in ((squared, low**2, high**2), (theta.exp(), 0, phase)):
        where = (uniform - a) / (b - a)
        assert 0 <= where.min() < where.max() <= 1
        sorted_, even = where.sort().values, (torch.arange(n) + 0.5) / n
        assert (sorted_ - even).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov, p = 0.001
    assert abs(layer.recurrent.weight_ih_l0.std() - 0.1) < 0.001
    assert abs(layer.of_state.weight.std() * math.sqrt(n) - 1) < 0.05


def test_white_noise_drives_all_units_to_the_same_variance():
    """E|s|² = exp(2γ) E|Bx|² / (1 - |λ|²) = E|Bx|², which is 1 on average."""
    torch.manual_seed(0)
    module = bptt.Recurrent(bptt.cells.LRU, 20, 200, bias=False)
    bptt.init.ring_(module, 0.5, 0.95)
    with torch.no_grad():
        _, _, ((h, k),) = module(torch.randn(3000, 1, 20), return_states=True)
    power = (h.square() + k.square())[500:].mean((0, 1))
    of_drive = sum(part.square().sum(1) for part in module.weight_ih_l0.detach().chunk(2))
    assert 0.7 < (power / of_drive).min() < (power / of_drive).max() < 1.3
    assert abs(of_drive.mean() - 1) < 0.1


@pytest.mark.parametrize("ring", [(0.9, 0.5, 1), (-0.1, 0.5, 1), (0.5, 1.1, 1), (0, 1, 0)])
def test_rings_that_are_none(ring):
    with pytest.raises(ConfigError, match=r"bptt\.init\.ring_: "):
        bptt.LRU(3, 4, r_min=ring[0], r_max=ring[1], max_phase=ring[2])


def test_other_cells_have_no_ring():
    with pytest.raises(TypeError, match=r"ring_ is for LRU, got Recurrent of MIN_GRU"):
        bptt.init.ring_(bptt.Recurrent(bptt.cells.MIN_GRU, 3, 4))
    with pytest.raises(ValueError, match=r"output_size must be at least 1, got 0"):
        bptt.LRU(3, 4, 0)


def test_rings_of_radius_zero_and_one_are_finite():
    for radius in (0.0, 1.0):
        layer = bptt.LRU(3, 4, r_min=radius, r_max=radius)
        assert all(p.isfinite().all() for p in layer.parameters())


def test_zoneout_keeps_both_parts_of_a_unit():
    torch.manual_seed(0)
    layer, x = bptt.LRU(3, 64, zoneout=0.3, **double), torch.randn(40, 2, 3, **double)
    torch.manual_seed(1)
    y, _ = layer(x)
    torch.manual_seed(1)
    _, _, ((h, k),) = layer.recurrent(x, return_states=True)
    kept = h[1:] == h[:-1]
    assert torch.equal(kept, k[1:] == k[:-1])
    assert 0.25 < float(kept.double().mean()) < 0.35
    torch.testing.assert_close(y, layer._output(x, h, k), rtol=0, atol=0)
    layer.eval()
    mean = layer(x)[0]
    layer.recurrent.zoneout = 0.0
    assert not torch.allclose(mean, layer(x)[0])
    with pytest.raises(ValueError, match="zoneout must be a number from 0 to below 1"):
        bptt.LRU(3, 5, zoneout=1.0)
