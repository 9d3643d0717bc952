"""Weight drop, as in AWD-LSTM: some recurrent weights are zero for a whole sequence.

S. Merity, N. S. Keskar and R. Socher, "Regularizing and optimizing LSTM language models" (2018).
It is a parametrization, which torch.nn's modules and bptt's take alike. Inside
torch.nn.utils.parametrize.cached() one mask is drawn for all that is computed there.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize

import bptt


class WeightDrop(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p, self.masks = p, 0

    def forward(self, weight):
        self.masks += 1
        return nn.functional.dropout(weight, self.p, self.training)


def with_weight_drop(rnn, p=0.5):
    """Drop recurrent weights of every layer and direction."""
    for name in [n for n, _ in rnn.named_parameters() if n.startswith("weight_hh")]:
        parametrize.register_parametrization(rnn, name, WeightDrop(p))
    return rnn


def run(rnn, x, credit):
    torch.manual_seed(1)  # the same mask
    rnn.zero_grad()
    with parametrize.cached():
        y, _ = bptt.unroll(rnn, x, credit=credit)
    y[-1].square().sum().backward()
    return y.detach(), rnn.parametrizations.weight_hh_l0.original.grad


def masks(rnn, x):
    drop = rnn.parametrizations.weight_hh_l0[0]
    drop.masks = 0
    bptt.unroll(rnn, x, credit="truncated:10")
    return drop.masks


x = torch.randn(30, 8, 4, generator=torch.Generator().manual_seed(0))
theirs, ours = with_weight_drop(nn.LSTM(4, 16)), with_weight_drop(bptt.LSTM(4, 16))
ours.load_state_dict(theirs.state_dict())
for credit in ("full", "truncated:10"):
    expected, found = run(theirs, x, credit), run(ours, x, credit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
assert masks(ours, x) == 1 < masks(theirs, x)  # without cached()
assert torch.equal(ours.eval()(x)[0], ours(x)[0])  # in evaluation nothing is dropped
kept = (found[1] != 0).float().mean()
assert 0.4 < kept < 0.6
print(f"p = 0.5: gradients reach {kept:.0%} of the recurrent weights, in torch.nn the same ones")
