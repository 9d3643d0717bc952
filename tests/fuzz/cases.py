"""Random cases of a kind: ``python -m fuzz.cases KIND FIRST COUNT``; kinds are files beside this.

Prints each seed before its case and ``ok`` after it, so that a process that dies names its seed.
"""

import importlib
import sys

import torch

if __name__ == "__main__":
    kind, (first, count) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    run = importlib.import_module(f"fuzz.{kind}").run
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        run(seed)
        print("ok", flush=True)
