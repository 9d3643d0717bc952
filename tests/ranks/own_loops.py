"""Training loops as users write them, for any number of processes; and a script to run them."""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import bptt
from bptt._src.ranks import ranks_of
from bptt.language_model import Config

TOKENS, T, UPDATES = 16, 6, 8
WRAPPERS = {"ddp": DistributedDataParallel, "fsdp": lambda m: fully_shard(m) and m}
RANDOMIZED = bptt.Randomized(mean=3)
CREDITS = {
    "full": bptt.Full(),
    "truncated": bptt.Truncated(2),
    "earlier steps run again": bptt.Truncated(every=T, reach=15),
    "randomized": RANDOMIZED,
    "randomized, together": bptt.Randomized(mean=3, shared=True),
}


def tokens() -> torch.Tensor:
    """A walk: each is the one before, or two more."""
    steps = torch.randint(2, (500,), generator=torch.Generator().manual_seed(3))
    return 2 * steps.cumsum(0) % TOKENS


class Own(nn.Module):
    """A network of one's own, which takes its stream along."""

    def __init__(self, kind: Any = bptt.LSTM) -> None:
        super().__init__()
        self.recurrent = kind(TOKENS, 8, num_layers=2)
        self.readout = nn.Linear(8, TOKENS)
        self.calls = 0
        self.recurrent.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def forward(self, x, stream, *, targets, **how):
        x = nn.functional.one_hot(x, TOKENS).to(self.readout.weight.dtype)
        h, stream = stream.advance(self.recurrent, x, **how)
        given = h, self.readout.weight, self.readout.bias, targets
        return bptt.losses.linear_cross_entropy(*given, reduction="sum"), stream


class Around(nn.Module):
    """The recurrent module alone is wrapped, and called in one of three ways."""

    def __init__(self, how: str, wrap: Any) -> None:
        super().__init__()
        inner = Own()
        self.how, self.inner, self.wrapped = how, [inner], wrap(inner.recurrent)

    def forward(self, x, stream, *, targets, credit, generator):
        asked = {"credit": credit, "generator": generator}
        x = nn.functional.one_hot(x, TOKENS).double()
        if self.how == "advance":
            h, stream = stream.advance(self.wrapped, x, **asked)
        else:
            call = self.wrapped if self.how == "call" else with_module(self.wrapped)
            h, state = call(x, stream.state, **asked)
            stream = bptt.Stream(tuple(s.detach() for s in state))
        logits = h.repeat(1, 1, 2)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return loss, stream


def with_module(module):
    return lambda x, state, **asked: bptt.unroll(module, x, state, **asked)


def language_model(wrap: Any, **options: Any) -> Any:
    tokenizer = bptt.data.Tokenizer.train(["abcdefghijklmnop"], level="char")
    model = bptt.LanguageModel(tokenizer, Config(hidden=8, layers=2, dropout=0.0, **options))
    model = wrap(model.double())
    return lambda x, stream, **how: model(x, stream, reduction="sum", **how), model


def own(wrap: Any, kind: Any = bptt.LSTM) -> Any:
    model = Own(kind).double()
    wrapped = wrap(model)
    return wrapped, wrapped


def around(how: str) -> Any:
    def made(wrap: Any) -> Any:
        whole = Around(how, lambda m: wrap(m.double()))
        return whole, whole.wrapped

    return made


def loops() -> dict[str, Any]:
    """By a name: what makes the model, its credit, and the number of sequences."""
    found: dict[str, Any] = {}
    for credit in CREDITS:
        found[f"own, {credit}"] = (own, CREDITS[credit], 5)
        found[f"language model, {credit}"] = (language_model, CREDITS[credit], 5)
    found["tied"] = (lambda wrap: language_model(wrap, tied=True), CREDITS["truncated"], 5)
    found["torch"] = (lambda wrap: own(wrap, nn.LSTM), RANDOMIZED, 5)
    found["advance"] = (around("advance"), RANDOMIZED, 5)
    found["call"] = (around("call"), RANDOMIZED, 6)
    found["unroll"] = (around("unroll"), RANDOMIZED, 6)
    return found


LOOPS = loops()


def run(name: str, wrap: Any, *, of: slice = slice(None)) -> dict[str, Any]:
    """Train for some updates; return the losses of the whole batch, and the weights."""
    make, credit, batch = LOOPS[name]
    torch.manual_seed(0)
    call, module = make(wrap)
    ranks = ranks_of()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    plans = torch.Generator().manual_seed(0)
    given = {"batch": batch} if batch % ranks.world_size else {}
    stream, losses = bptt.Stream(**given), []
    windows = bptt.data.streams(tokens(), batch=batch, steps=T)
    for _, (x, y) in zip(range(UPDATES), windows, strict=False):
        loss, stream = call(x, stream, targets=y, credit=credit, generator=plans)
        loss = loss / (batch * len(x))
        optimizer.zero_grad()
        (loss * ranks.world_size).backward()
        optimizer.step()
        loss = loss.detach()
        if ranks.world_size > 1:
            dist.all_reduce(loss)
        losses.append(float(loss))
    weights = {k: whole(p) for k, p in module.named_parameters()}
    inner = getattr(module, "module", module)
    return {
        "losses": losses,
        "weights": {k.removeprefix("module."): w for k, w in weights.items()},
        "calls": getattr(inner, "calls", None),
        "plans": plans.get_state(),
        "saved": copy.deepcopy(stream.state_dict()),
    }


def whole(p: torch.Tensor) -> torch.Tensor:
    found = p.detach()
    return found.full_tensor() if hasattr(found, "full_tensor") else found.clone()


def main() -> None:
    """``own_loops.py DIRECTORY``, started by torchrun."""
    dist.init_process_group("gloo")
    found = {
        f"{name}, {kind}": run(name, wrap) for name in LOOPS for kind, wrap in WRAPPERS.items()
    }
    torch.save(found, Path(sys.argv[1]) / f"own-{dist.get_world_size()}-{dist.get_rank()}.pt")
    dist.barrier()
    time.sleep(0.1)  # gloo's threads take Python's lock to let go of the last tensors
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
