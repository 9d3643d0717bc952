"""snntorch: the loop of its tutorials, and its deprecated TBPTT."""

from __future__ import annotations

import warnings

import snntorch as snn
import torch
from snntorch import functional as SF
from table import told
from torch import nn

import bptt


class Net(nn.Module):
    """The network of snntorch's fifth tutorial, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        recorded = []
        for step in range(len(x)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            recorded.append(mem2)
        return torch.stack(recorded)


def tutorial() -> None:
    net, x = Net(), torch.rand(8, 3, 4)
    targets = torch.randint(0, 2, (3,))
    loss = nn.CrossEntropyLoss()

    def run() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999))
        mem = net(x)
        total = sum(loss(m, targets) for m in mem)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    for name in ("lif1", "lif2"):
        report = bptt.audit(run, net, name)
        told(
            "snntorch", f"the loop of its tutorials; Leaky, {name}", "-",
            report, {"full": bptt.Full()},
        )  # fmt: skip


def deprecated(second: type[nn.Module], options: dict[str, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from snntorch import backprop
    net = nn.Sequential(
        nn.Linear(4, 8),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(8, 2),
        second(**options, init_hidden=True, output=True),
    )
    # With data that varies in time, time_var=True, version 1.0.0 raises UnboundLocalError.
    data = [(torch.rand(3, 4), torch.randint(0, 2, (3,)))]
    what = f"backprop.TBPTT(K=4), a Leaky and a {second.__name__}; the Leaky"

    def run() -> None:
        optimizer = torch.optim.Adam(net.parameters())
        backprop.TBPTT(net, data, optimizer, SF.ce_rate_loss(), 8, time_var=False, K=4)

    report = bptt.audit(run, net, "1", state=("mem",))
    told(
        "snntorch",
        what,
        "updates every K steps, states detached",
        report,
        {
            "Truncated(4)": bptt.Truncated(4),
            "none: the run stops in the second window": lambda r: r.record.failure is not None,
        },
    )


def main() -> None:
    torch.manual_seed(0)
    tutorial()
    deprecated(snn.Leaky, {"beta": 0.9})
    deprecated(snn.Synaptic, {"alpha": 0.9, "beta": 0.8})


if __name__ == "__main__":
    main()
