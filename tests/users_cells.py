"""Cells as people write them in plain PyTorch: ``(x_t, state) -> (output, state)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

I, H = 5, 6


class Cell(nn.Module):
    """One step with the parameters that it may need, n blocks of gates."""

    def __init__(self, n: int = 1, inputs: int = I, hidden: int = H) -> None:
        super().__init__()
        self.size, self.of_x = hidden, nn.Linear(inputs, n * hidden)
        self.of_h = nn.Linear(hidden, n * hidden)


class Gru(Cell):
    def forward(self, x: Tensor, h: Tensor) -> Any:
        ar, az, an = self.of_x(x).chunk(3, -1)
        pr, pz, q = self.of_h(h).chunk(3, -1)
        r, z = torch.sigmoid(ar + pr), torch.sigmoid(az + pz)
        h = (1 - z) * torch.tanh(an + r * q) + z * h
        return h, h


class Lstm(Cell):
    def gates(self, x: Tensor, h: Tensor) -> Tensor:
        return self.of_x(x) + self.of_h(h)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        i, f, g, o = self.gates(x, h).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class SideBySide(Lstm):
    """One product with [x, h], as many tutorials have it."""

    def __init__(self) -> None:
        super().__init__(4)
        self.of_both = nn.Linear(I + H, 4 * H)

    def gates(self, x: Tensor, h: Tensor) -> Tensor:
        return self.of_both(torch.cat([x, h], 1))


class LayerNorms(Lstm):
    def __init__(self) -> None:
        super().__init__(4)
        self.norms = nn.ModuleList([nn.LayerNorm(4 * H), nn.LayerNorm(4 * H), nn.LayerNorm(H)])

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        a = self.norms[0](self.of_x(x)) + self.norms[1](self.of_h(h))
        i, f, g, o = a.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.norms[2](c))
        return h, (h, c)


class Dale(Cell):
    """A rate network whose units excite or inhibit, with a leak that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sign", torch.tensor([1.0, 1, 1, 1, -1, -1]))
        self.leak = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, h: Tensor) -> Any:
        a = self.leak.sigmoid()
        into = self.of_x(x) + torch.relu(h) @ (self.of_h.weight.abs() * self.sign).t()
        h = (1 - a) * h + a * into
        return torch.relu(h), h


class Direct(Cell):
    """h @ W, and a read-out that the state does not depend on."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(x) + h @ self.of_h.weight)
        return {"logits": linear(h, self.of_x.weight.t()), "h": h.log_softmax(-1)}, h


class Both(NamedTuple):
    below: Tensor
    above: Tensor


class TwoLayers(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        a, b = state
        below = torch.tanh(self.of_x(x) + self.of_h(a))
        above = torch.tanh(linear(below, self.of_h.weight) + self.of_h(b)) + 0.1 * b
        return above * a, Both(below, above)


class Spike(torch.autograd.Function):
    """A step whose derivative is another one's."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return d / (1 + 10 * v.abs()) ** 2


class Spiking(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        z, v = state
        v = 0.9 * v + self.of_x(x) + self.of_h(z) - z.detach()
        z = Spike.apply(v - 0.5)
        return z, (z, v)


class Softmax(Cell):
    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(x) + self.of_h(torch.softmax(h, -1)))
        return h.mean(-1, keepdim=True), h


class InPlace(Cell):
    def forward(self, x: Tensor, h: Tensor) -> Any:
        a = self.of_x(x)
        a += self.of_h(h)
        a.tanh_()
        y = torch.zeros_like(a)
        y[:, :2] = a[:, 2:4]
        return y, a


class Masked(Cell):
    """Keeps its state where it is told to: x_t is (input, whether)."""

    def forward(self, x: Any, h: Tensor) -> Any:
        new = torch.tanh(self.of_x(x[0]) + self.of_h(h))
        h = torch.where(x[1].unsqueeze(-1), new, h)
        return h * x[1].unsqueeze(-1), h


class Tokens(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, I)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.tanh(self.of_x(self.embedding(x)) + self.of_h(h))
        return h, h


class Multiplicative(Cell):
    """Two products, one after the other: m = W_mx x ⊙ W_mh h, h = tanh(W_hx x + W_hm m)."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        m = self.of_x(x) * self.of_h(h)
        h = torch.tanh(self.of_x(x) + linear(m, self.of_h.weight))
        return h, h


class Norms(Cell):
    """The size of a state, and its largest number."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        size = (h * h).sum(-1, keepdim=True).add(1e-3).sqrt()
        top = h.amax(-1, keepdim=True)
        h = self.of_x(x) + self.of_h(h / size) - top
        return size, torch.tanh(h)


class Residual(Cell):
    """Its state is another one of the inputs, and an earlier state is handed on."""

    def forward(self, x: Tensor, state: Any) -> Any:
        h, before, last = state
        new = h + torch.tanh(self.of_x(x) + self.of_h(before))
        return new + last, (new, h, x[:, :1].expand(-1, self.size))


class Places(Cell):
    """Units in another order, chosen once for all and by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 5, 4]))

    def forward(self, x: Tensor, h: Tensor) -> Any:
        of_x = (x[:, :2] > 0).long() + torch.arange(3, 5)
        turned = self.of_h(h[:, self.order]) + h[:, [-1, 0, 0, 1, -2, 2]]
        pairs = h.view(-1, 3, 2)[:, [2, 0, 1]].flatten(1).index_select(1, self.order)
        h = torch.tanh(self.of_x(x) + turned + nn.functional.pad(h.gather(1, of_x), (2, 2)) * pairs)
        return h[:, self.order[:3]], h


class Heads(Cell):
    """Two heads that do not see each other, and a norm of each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = nn.Parameter(torch.randn(2, 3, 3)), nn.GroupNorm(2, H)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        each = h.view(-1, 2, 3)
        a = torch.einsum("bhd,hde->bhe", each, self.heads) + each
        b = torch.einsum("hed,bhd->bhe", self.heads, torch.relu(each))
        c = (each.tanh().unsqueeze(2) @ self.heads).squeeze(2)
        h = torch.tanh(self.of_x(x) + self.norm((a + b * c).flatten(1)))
        return h, h


class WithoutGradient(Cell):
    """A gate whose gradient nobody asks for, and a state that is detached on one way."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        with torch.no_grad():
            gate, _ = torch.sigmoid(self.of_h(h) + self.of_x(x)).split([H, 0], 1)
        h = gate * torch.tanh(self.of_x(x) + self.of_h(h.detach())) + (1 - gate) * h
        return h, h


def weight_normed() -> nn.Module:
    cell = Gru(3)
    nn.utils.parametrizations.weight_norm(cell.of_h)
    return cell


def _function() -> Callable[..., Any]:
    cell = nn.GRUCell(I, H)
    return lambda x, h: ((new := cell(x, h)), new)


class Case(NamedTuple):
    make: Callable[[], Any]
    states: int = 1
    """How many tensors [B, H] the state has."""
    inputs: Callable[..., Any] = lambda shape, **how: torch.randn(*shape, I, **how)
    as_tuple: Callable[[list[Tensor]], Any] = tuple


def _with_mask(shape: tuple[int, ...], **how: Any) -> Any:
    return torch.randn(*shape, I, **how), torch.rand(*shape) < 0.6


CASES: dict[str, Case] = {
    "gru": Case(lambda: Gru(3)),
    "lstm": Case(lambda: Lstm(4), 2),
    "side by side": Case(SideBySide, 2),
    "layer norms": Case(LayerNorms, 2),
    "dale": Case(Dale),
    "direct": Case(Direct),
    "two layers": Case(TwoLayers, 2, as_tuple=lambda s: Both(*s)),
    "spiking": Case(Spiking, 2),
    "softmax": Case(Softmax),
    "in place": Case(InPlace),
    "masked": Case(Masked, inputs=_with_mask),
    "tokens": Case(Tokens, inputs=lambda shape, **how: torch.randint(9, shape)),
    "multiplicative": Case(Multiplicative),
    "norms": Case(Norms),
    "residual": Case(Residual, 3),
    "places": Case(Places),
    "heads": Case(Heads),
    "without a gradient": Case(WithoutGradient),
    "weight norm": Case(weight_normed),
    "nn.LSTMCell": Case(lambda: nn.LSTMCell(I, H), 2),
    "nn.RNNCell": Case(lambda: nn.RNNCell(I, H)),
    "a function": Case(_function),
}


def state_of(case: Case, batch: int, **how: Any) -> Any:
    """A random state."""
    each = [torch.rand(batch, H, **how) for _ in range(case.states)]
    return each[0] if case.states == 1 else case.as_tuple(each)
