"""Lightning along a stream: what truncated_bptt_steps did in Lightning 1.x, with a bptt.Stream.

The DataLoader's batches are whole sequences; each is trained on in windows, and the state is
carried from window to window. Beside it the same loop in plain torch.nn.
"""

import lightning
import torch
from torch import nn

import bptt

WINDOW, B, H = 10, 4, 16
x = torch.randn(40, 60, 1, generator=torch.Generator().manual_seed(1))  # [sequence, T, 1]
data = torch.utils.data.TensorDataset(x, x.cumsum(1) / torch.arange(1, 61).view(1, -1, 1))
loader = torch.utils.data.DataLoader(data, batch_size=B)


class Forecaster(lightning.LightningModule):
    def __init__(self, library=bptt):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False  # an update after each window
        self.gru, self.readout = library.GRU(1, H, batch_first=True), nn.Linear(H, 1)
        self.losses = []

    def training_step(self, batch, _):
        stream, optimizer = bptt.Stream(), self.optimizers()  # a new stream for each sequence
        for window, target in zip(*(b.split(WINDOW, dim=1) for b in batch), strict=True):
            y, stream = stream.advance(self.gru, window, credit=bptt.Truncated(WINDOW))
            loss = nn.functional.mse_loss(self.readout(y), target)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.losses.append(loss.item())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", enable_checkpointing=False, **quiet)
trainer.fit(ours := Forecaster(), loader)

theirs = Forecaster(nn)  # its modules are used, Lightning is not
optimizer, losses = theirs.configure_optimizers(), []
for batch in 3 * list(loader):
    state = None
    for window, target in zip(*(b.split(WINDOW, dim=1) for b in batch), strict=True):
        y, state = theirs.gru(window, state)
        loss = nn.functional.mse_loss(theirs.readout(y), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = state.detach()
        losses.append(loss.item())
torch.testing.assert_close(ours.losses, losses, rtol=1e-4, atol=1e-6)
first, last = sum(losses[:60]) / 60, sum(losses[-60:]) / 60
assert last < 0.8 * first
print(f"loss {first:.3f} in the first epoch, {last:.3f} in the last; in torch.nn the same")
