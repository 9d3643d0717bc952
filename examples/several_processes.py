"""A training loop of one's own, in one process or in several: the result is the same.

python examples/several_processes.py
torchrun --nproc-per-node 2 examples/several_processes.py [fsdp]
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import bptt

B, T = 8, 25  # streams of all processes together, and steps of a window


class Model(torch.nn.Module):  # of bytes; a wrapper sees only what goes through forward
    def __init__(self):
        super().__init__()
        self.embedding, self.readout = torch.nn.Embedding(256, 32), torch.nn.Linear(64, 256)
        self.lstm = bptt.LSTM(32, 64)  # or torch.nn.LSTM, which a stream runs too

    def forward(self, x, y, stream, credit):
        h, stream = stream.advance(self.lstm, self.embedding(x), credit=credit)
        weight, bias = self.readout.weight, self.readout.bias
        return bptt.losses.linear_cross_entropy(h, weight, bias, y, reduction="sum"), stream


def main():
    if several := "RANK" in os.environ:  # torchrun has started this process
        dist.init_process_group()  # before the first bptt.Stream and bptt.data.streams
    processes = dist.get_world_size() if several else 1
    torch.manual_seed(0)  # the same everywhere: the first weights, and where Randomized cuts
    model = Model()
    if several:
        model = fully_shard(model) if "fsdp" in sys.argv else DistributedDataParallel(model)
    optimizer, stream = torch.optim.Adam(model.parameters(), lr=0.01), bptt.Stream(batch=B)
    text = np.frombuffer(Path(os.__file__).read_bytes(), np.uint8)[:10_000]
    for x, y in bptt.data.streams(text, batch=B, steps=T):  # this process's streams
        loss, stream = model(x, y, stream, bptt.Randomized(mean=10))
        loss = loss / (B * len(x))  # a share of the batch's mean loss, whose shares add up to it
        optimizer.zero_grad()
        (loss * processes).backward()  # both wrappers take the mean of the processes' gradients
        optimizer.step()
        if several:
            dist.all_reduce(loss := loss.detach())
        if not several or dist.get_rank() == 0:
            print(f"{loss:.4f}")
    if several:
        dist.barrier()  # gloo's threads must be done with the last sum before the process ends
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
