"""See that the installed bptt runs, on the kernels that it was built with.

``python tools/check_wheel.py``, with BPTT_KERNELS=native where they must be there.
"""

import sys
from pathlib import Path

import torch

import bptt


def main() -> None:
    """Compare a layer of each kind with torch.nn's, and its gradient."""
    where = Path(bptt.__file__)
    if not where.is_relative_to(sys.prefix):
        sys.exit(f"bptt is not the installed one, but {where}")
    for name in ("RNN", "GRU", "LSTM"):
        torch.manual_seed(0)
        ours, theirs = getattr(bptt, name)(9, 17), getattr(torch.nn, name)(9, 17)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(11, 3, 9)
        found = []
        for network in (ours, theirs):
            y, _ = network(x)
            y.square().sum().backward()
            found.append((y.detach(), *(p.grad for p in network.parameters())))
        torch.testing.assert_close(*found)
    print(f"bptt {bptt.__version__} in {where.parent}: {bptt.kernels.backend()}")


if __name__ == "__main__":
    main()
