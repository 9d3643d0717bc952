"""``bptt.fuse``: a cell in plain PyTorch, traced, split by what depends on what, run natively."""
