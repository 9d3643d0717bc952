"""An encoder and a decoder with attention (Luong et al. 2015) that learn to write backwards."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bptt

SYMBOLS, T, B, H = 8, 6, 64, 32  # one more symbol says: begin
torch.manual_seed(0)


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, 16)
        self.encoder, self.decoder = bptt.GRU(16, H // 2, bidirectional=True), bptt.GRU(16, H)
        self.mix, self.readout = nn.Linear(2 * H, H), nn.Linear(H, SYMBOLS)

    def encode(self, source):
        memory, (there, back) = self.encoder(self.embedding(source))  # [T, B, H]
        return memory, torch.cat([there, back], -1).unsqueeze(0)

    def decode(self, symbols, state, memory):
        y, state = self.decoder(self.embedding(symbols), state)
        attention = torch.einsum("tbh,sbh->tbs", y, memory).softmax(-1)
        context = torch.einsum("tbs,sbh->tbh", attention, memory)
        return self.readout(torch.tanh(self.mix(torch.cat([y, context], -1)))), state

    def forward(self, source, target):
        memory, state = self.encode(source)
        before = nn.functional.pad(target[:-1], (0, 0, 1, 0), value=SYMBOLS)
        return self.decode(before, state, memory)[0].movedim(-1, 1)  # all steps in one call


def train(model, updates):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(updates):
        source = torch.randint(SYMBOLS, (T, B))
        optimizer.zero_grad()
        (loss := cross_entropy(model(source, source.flip(0)), source.flip(0))).backward()
        optimizer.step()
        yield loss.item()


model = Seq2Seq()
theirs = bptt.convert(copy.deepcopy(model), to="torch")  # the same model with torch.nn.GRU
ours = list(train(model, 400))
torch.testing.assert_close(list(train(theirs, 10)), ours[:10], rtol=1e-3, atol=1e-3)
memory, state = model.encode(source := torch.randint(SYMBOLS, (T, 100)))
symbol, right = torch.full_like(source[:1], SYMBOLS), 0
for wanted in source.flip(0):  # step by step: the decoder reads what it wrote
    logits, state = model.decode(symbol, state, memory)
    symbol = logits.argmax(-1)
    right += (symbol == wanted).float().mean().item() / T
assert right > 0.9
print(f"loss {ours[0]:.3f} at first, {ours[-1]:.3f} at the end; symbols right {right:.3f}")
