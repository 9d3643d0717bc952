"""ignite along a stream, beside its own create_supervised_tbptt_trainer, which cuts windows.

Truncated(k) is the same; with every < reach, losses go back further.
"""

import torch
from ignite.contrib.engines.tbptt import create_supervised_tbptt_trainer
from ignite.engine import Engine, Events
from torch import nn

import bptt

WINDOW = 5
symbols = torch.randint(2, (100, 16, 1), generator=torch.Generator().manual_seed(1)).float()
batches = [(x, x.roll(6, 0)) for x in 20 * [symbols]]  # [T, B, 1]: the input of six steps ago
loss_of = nn.functional.mse_loss


class Model(nn.Module):
    def __init__(self, library=bptt, credit=None):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.readout, self.credit = library.GRU(1, 16), nn.Linear(16, 1), credit

    def forward(self, x, state=None):
        y, state = self.gru(x, state)
        return self.readout(y), state


def by_stream(credit):
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def update(engine, batch):
        stream, losses = bptt.Stream(), []
        for x, target in zip(*(b.split(WINDOW) for b in batch), strict=True):
            y, stream = stream.advance(model, x, credit=credit)
            optimizer.zero_grad()
            (loss := loss_of(y, target)).backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return run(Engine(update))


def run(trainer):
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output))
    trainer.run(batches)
    return losses


theirs = Model(nn)
optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
expected = run(create_supervised_tbptt_trainer(theirs, optimizer, loss_of, WINDOW))
ours, further = by_stream(bptt.Truncated(WINDOW)), by_stream(bptt.Truncated(every=5, reach=15))
torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
assert further[-1] < 0.5 * ours[-1]
print(f"loss: ignite {expected[-1]:.3f}, Truncated(5) {ours[-1]:.3f}, reach=15 {further[-1]:.3f}")
