"""A training loop of one's own, in one process or in several: the result is the same.

python examples/several_processes.py
torchrun --nproc-per-node 2 examples/several_processes.py [fsdp]
"""

import os
import sys
import time

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
        readout = self.readout.weight, self.readout.bias
        return bptt.losses.linear_cross_entropy(h, *readout, y, reduction="sum"), stream


def main():
    torch.manual_seed(0)  # the same everywhere: the first weights, and where Randomized cuts
    model, processes = Model(), int(os.environ.get("WORLD_SIZE", 1))
    if several := "RANK" in os.environ:  # torchrun has started this process
        dist.init_process_group()  # before the first bptt.Stream and bptt.data.streams
        model = fully_shard(model) if "fsdp" in sys.argv else DistributedDataParallel(model)
    optimizer, stream = torch.optim.Adam(model.parameters(), lr=0.01), bptt.Stream(batch=B)
    text = np.fromfile(os.__file__, np.uint8, count=10_000)
    for x, y in bptt.data.streams(text, batch=B, steps=T):  # this process's streams
        loss, stream = model(x, y, stream, bptt.Randomized(mean=10))
        optimizer.zero_grad()
        loss = loss / (B * len(x))  # a share of the batch's mean loss, whose shares add up to it
        (loss * processes).backward()  # both wrappers take the mean of the processes' gradients
        optimizer.step()
        if several:
            dist.all_reduce(loss := loss.detach())
        if not several or dist.get_rank() == 0:
            print(f"{loss:.4f}")
    if several:
        dist.barrier()
        time.sleep(0.1)  # gloo's threads take Python's lock to let go of the last tensors
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
