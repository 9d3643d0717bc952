"""Truncation with k1 ≠ k2, by hand."""

from __future__ import annotations

from itertools import pairwise

import torch
from audit.gallery.registry import Training, loop
from torch import nn

import bptt


class TBPTT:
    """The class that is handed around for k1 ≠ k2: a loss at every k1-th step, backward by hand
    through leaves. Wrong, as it is handed around: a leaf's ``grad`` holds the losses before too."""

    def __init__(self, one_step_module, loss_module, k1, k2, *, clears):
        self.one_step_module = one_step_module
        self.loss_module = loss_module
        self.k1, self.k2 = k1, k2
        self.retain_graph = k1 < k2
        self.clears = clears

    def train(self, input_sequence, init_state):
        states = [(None, init_state)]
        for j, (inp, target) in enumerate(input_sequence):
            state = states[-1][1].detach()
            state.requires_grad = True
            output, new_state = self.one_step_module(inp, state)
            states.append((state, new_state))
            while len(states) > self.k2:
                del states[0]
            if (j + 1) % self.k1 == 0:
                loss = self.loss_module(output, target)
                loss.backward(retain_graph=self.retain_graph)
                for i in range(self.k2 - 1):
                    if i + 2 > len(states) or states[-i - 2][0] is None:
                        break
                    curr_grad = states[-i - 1][0].grad
                    states[-i - 2][1].backward(curr_grad, retain_graph=self.retain_graph)
                if self.clears:
                    for state, _ in states:
                        if state is not None:
                            state.grad = None


@loop("counted-twice", t=1, s=0)
def leaves_every_k1(is_wrong):
    """The loss of every second step reaches back four steps."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 8)
            self.decode = nn.Linear(8, 3)

        def forward(self, inp, state):
            state = self.cell(inp, state)
            return self.decode(state), state

    model = Step()
    sequence = torch.randn(9, 2, 3)

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        runner = TBPTT(model, nn.MSELoss(), k1=2, k2=4, clears=not is_wrong)
        runner.train(pairwise(sequence), torch.zeros(2, 8))
        optimizer.step()

    return Training(run, model, "cell", credit=bptt.Truncated(every=2, reach=4))


@loop("state-parts-differ", t=2, s=1)
def leaves_between_blocks(is_wrong):
    """Blocks of two steps; each block's losses go back through the block before, from leaf to leaf.
    Wrong: by h alone."""
    rnn, head = nn.LSTM(3, 10), nn.Linear(10, 1)
    blocks = torch.randn(8, 2, 3).split(2)

    def run():
        optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.05)
        optimizer.zero_grad()
        h, c = (torch.zeros(1, 2, 10, requires_grad=True) for _ in range(2))
        before = None
        for x in blocks:
            y, (h_new, c_new) = rnn(x, (h, c))
            head(y).square().mean().backward(retain_graph=True)
            if before is not None:
                h_before, c_before = before
                if is_wrong:
                    h_before.backward(h.grad)
                else:
                    torch.autograd.backward([h_before, c_before], [h.grad, c.grad])
            before = h_new, c_new
            h, c = h_new.detach().requires_grad_(), c_new.detach().requires_grad_()
        optimizer.step()

    credit = bptt.Truncated(every=2, reach=4)
    return Training(run, nn.ModuleDict({"rnn": rnn, "head": head}), "rnn", credit=credit)
