"""Random training loops: each a seed, run with a real module or with the probe in its place.

All that is drawn comes from the seed alone, so that a loop does the same whatever its module is.
Losses are sums times ``SMALL``, as the probe needs them.
"""

import random
from collections import Counter

import numpy as np
import torch
from audit.probe import SMALL, STEP, Probe
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

I, H = 3, 6
STEPS = 40
"""At most, of a loop."""


class Stepper(nn.Module):
    """A module of the user's own: a step at a time, (x [B, I], state) -> (y [B, H], state)."""

    def __init__(self, parts):
        super().__init__()
        self.cell = (nn.GRUCell if parts == 1 else nn.LSTMCell)(I, H)

    def forward(self, x, state=None):
        state = self.cell(x, state)
        return 1.5 * (state if torch.is_tensor(state) else state[0]), state


class Keeper(nn.Module):
    """Keeps its state itself."""

    def __init__(self):
        super().__init__()
        self.cell, self.mem = nn.GRUCell(I, H), None

    def forward(self, x):
        self.mem = self.cell(x, self.mem if self.mem is not None and self.mem.dim() else None)
        return torch.tanh(self.mem)


class Loop:
    """A random loop; what it is, is drawn when it is made, and what it does, when it runs."""

    def __init__(self, seed):
        self.seed, r = seed, random.Random(seed)
        self.kind = r.choice(["sequence"] * 4 + ["cell"] * 2 + ["step", "attribute"])
        self.name = r.choice(["LSTM", "GRU", "RNN"]) if self.kind in ("sequence", "cell") else "GRU"
        self.name = r.choice(["LSTM", "GRU"]) if self.kind == "step" else self.name
        self.parts = 2 if self.name == "LSTM" else 1
        whole = self.kind == "sequence"
        self.layers = r.choice([1, 1, 2]) if whole else None
        self.batch_first = whole and r.random() < 0.3
        self.packed = whole and not self.batch_first and r.random() < 0.2
        self.batch = r.choice([1, 2, 3])
        self.dtype = r.choice([torch.float32, torch.float32, torch.float64])
        self.autocast = whole and self.dtype == torch.float32 and r.random() < 0.1
        self.checkpointed = whole and not self.packed and r.random() < 0.1
        self.normed = whole and r.random() < 0.1
        self.frozen = r.random() < 0.05
        self.update = r.choice(["sgd", "adam", "data", "grad", "none"])
        self.mode = r.choice(["windows", "windows", "retain", "end", "by hand"])
        self.is_doubled = False
        """Whether every loss is sent back twice; not drawn."""
        self.done = Counter()
        """What it did, by name."""
        self.is_opaque = False
        """Whether a state without a graph was multiplied, so that its values are unknown."""

    @property
    def state(self):
        return "mem" if self.kind == "attribute" else None

    def module(self):
        """Make the real module."""
        if self.kind == "step":
            return Stepper(self.parts).to(self.dtype)
        if self.kind == "attribute":
            return Keeper().to(self.dtype)
        if self.kind == "cell":
            return getattr(nn, f"{self.name}Cell")(I, H, dtype=self.dtype)
        options = {"batch_first": self.batch_first, "dtype": self.dtype}
        made = getattr(nn, self.name)(I, H, self.layers, **options)
        return parametrizations.weight_norm(made, "weight_hh_l0") if self.normed else made

    def probe(self):
        """Make the module that says what is true."""
        return Probe(STEPS, self.batch, self.parts, self.layers, self.kind, self.batch_first)

    def run(self, module):
        """Run it, and return all that it computes."""
        return _Run(self, module).run()


class _Run:
    def __init__(self, loop, module):
        self.loop, self.module, self.r = loop, module, random.Random(loop.seed + 10**6)
        self.is_probe = isinstance(module, Probe)
        self.H = module.size if self.is_probe else H
        self.dtype = torch.float64 if self.is_probe else loop.dtype
        torch.manual_seed(loop.seed)
        self.heads = nn.ModuleList(nn.Linear(self.H, 1, dtype=self.dtype) for _ in range(2))
        for head in self.heads:
            nn.init.constant_(head.weight, 0.5)
        self.initial = nn.Parameter(torch.zeros(self.H, dtype=self.dtype))
        self.clock, self.losses, self.seen, self.leaves = 0, [], [], []
        self.is_scaled = False
        """Whether the state was multiplied since the last window."""
        loop.done.clear()
        loop.is_opaque = False
        module.requires_grad_(not loop.frozen)
        learnt = [*self.heads.parameters(), self.initial]
        learnt += [p for p in module.parameters() if p.requires_grad]
        self.learnt = learnt
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
        kind = kinds.get(loop.update)
        self.optimizer = None if kind is None else kind(learnt, lr=1e-3)

    def chance(self, p, name=None):
        happens = self.r.random() < p
        if happens and name:
            self.loop.done[name] += 1
        return happens

    # ------------------------------------------------------------------------------- the loop

    def run(self):
        state, windows = None, self.r.choice([2, 3, 3, 4])
        kept = []
        for k in range(windows):
            state = self.between(state, kept if k else [])
            if self.chance(0.1, "rollout"):
                self.loop.is_opaque |= self.is_scaled
                with torch.no_grad():
                    _, after = self.window(state)
                state = after if self.chance(0.5, "state of a rollout") else state
            y, state = self.window(state)
            kept.append(state)
            self.is_scaled = False
            self.losses += self.losses_of(y, state)
            if self.loop.mode in ("windows", "retain", "by hand"):
                self.backward()
        if self.loop.mode == "end":
            self.backward()
        if self.loop.mode == "by hand":
            self.hand_back()
        self.step()
        values = [p.detach().clone() for p in self.learnt]
        grads = [p.grad.clone() for p in self.learnt if p.grad is not None]
        return [*self.seen, *values, *grads, torch.get_rng_state(), torch.rand(1)]

    def window(self, state):
        loop, module = self.loop, self.module
        T = self.r.choice([1, 2, 3, 4])
        x = torch.randn(T, loop.batch, I, dtype=torch.float64)
        x[..., 0] = (torch.arange(T)[:, None] + self.clock) / STEP
        x = x.to(self.dtype)
        self.clock += T
        if loop.kind != "sequence":
            return self.steps(x, state)
        lengths = torch.tensor([self.r.randint(1, T) for _ in range(loop.batch)])
        if loop.packed:
            lengths[self.r.randrange(loop.batch)] = T
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        x = x.transpose(0, 1) if loop.batch_first else x
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.autocast):
            if loop.checkpointed and torch.is_grad_enabled():
                y, state = checkpoint(module, x, state, use_reentrant=False)
            else:
                y, state = module(x, state)
        y = pad_packed_sequence(y)[0] if loop.packed else y
        y = y.transpose(0, 1) if loop.batch_first else y
        return y.to(self.dtype), self.map(state, lambda s: s.to(self.dtype))

    def steps(self, x, state):
        ys, kind = [], self.loop.kind
        for t, v in enumerate(x):
            if t and self.chance(0.3):
                state = self.masked(state)
            if kind == "attribute":
                self.module.mem = torch.zeros(()) if state is None else state
                ys.append(self.module(v))
                state = self.module.mem
            elif kind == "step":
                y, state = self.module(v, state)
                ys.append(y)
            else:
                state = self.module(v, state)
                ys.append(state if torch.is_tensor(state) else state[0])
        return torch.stack(ys), state

    # ------------------------------------------------------------------- between two windows

    def between(self, state, kept):
        """Do to a state what loops do to it."""
        if state is None:
            return self.learnt_state() if self.chance(0.15, "learnt state") else None
        if self.chance(0.1, "new state"):
            return None
        if kept and self.chance(0.1, "an earlier state") and self.loop.mode != "windows":
            state = self.r.choice(kept)
        if self.chance(0.15, "permuted"):
            rows = list(range(self.loop.batch))
            self.r.shuffle(rows)
            state = self.map(state, lambda s: s[..., rows, :])
        if self.chance(0.25, "masked"):
            state = self.masked(state)
        if self.chance(0.1, "in place"):
            state = self.map(state, lambda s: s.clone().mul_(1))
        if self.loop.mode == "windows" or self.chance(0.3, "detached"):
            state = self.cut(state)
        elif self.loop.parts == 2 and self.chance(0.2, "half detached"):
            which = self.r.randrange(2)
            state = tuple(s.detach() if i == which else s for i, s in enumerate(state))
        elif self.loop.mode == "by hand":
            state = self.leaf(state)
        return state

    def cut(self, state):
        self.loop.is_opaque |= self.is_scaled
        how = self.r.choice(["detach", "numpy", "data", "clone"])
        self.loop.done[how] += 1
        cuts = {
            "detach": lambda s: s.detach(),
            "data": lambda s: s.data,
            "clone": lambda s: s.clone().detach_(),
            "numpy": lambda s: torch.from_numpy(s.detach().double().numpy().copy()).to(s.dtype),
        }
        return self.map(state, cuts[how])

    def leaf(self, state):
        self.loop.is_opaque |= self.is_scaled
        leaf = self.map(state, lambda s: s.detach().requires_grad_())
        self.leaves.append((state, leaf))
        self.loop.done["handed on by hand"] += 1
        return leaf

    def learnt_state(self):
        shape = (self.loop.batch, self.H)
        shape = shape if self.loop.layers is None else (self.loop.layers, *shape)
        parts = [self.initial.expand(shape) for _ in range(self.loop.parts)]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def masked(self, state):
        weights = [0, 1] if self.chance(0.6) else [0, 0.5, 1, 2]
        mask = [[self.r.choice(weights)] for _ in range(self.loop.batch)]
        if {0, 1} < {0, 1} | {m[0] for m in mask}:
            parts = (state,) if torch.is_tensor(state) else state
            has_graph = torch.is_grad_enabled() and all(s.requires_grad for s in parts)
            self.loop.is_opaque |= not has_graph
            self.is_scaled = True
            self.loop.done["fractions"] += 1
        return self.map(state, lambda s: s * torch.tensor(mask, dtype=s.dtype))

    def map(self, state, f):
        return f(state) if torch.is_tensor(state) else tuple(f(s) for s in state)

    # ------------------------------------------------------------------------- losses, updates

    def losses_of(self, y, state):
        """One or more losses of a window."""
        return [self.loss(y, state) for _ in range(2 if self.chance(0.2, "two losses") else 1)]

    def loss(self, y, state):
        T, B = y.shape[:2]
        kinds = ["all", "all", "last", "some", "rows", "final", "head", "empty", "zero"]
        kind = self.r.choice(kinds)
        self.loop.done[f"loss: {kind}"] += 1
        some = [(t, b) for t in range(T) for b in range(B) if self.r.random() < 0.5]
        parts = (state,) if torch.is_tensor(state) else state
        part, row = self.r.choice(parts), self.r.randrange(B)
        if kind == "final":
            if self.loop.kind in ("cell", "attribute", "step"):
                kind = "last"
            else:
                return SMALL * part.square().sum()
        if kind == "head":
            head = self.heads[self.r.randrange(2)]
            return SMALL * head(y).square().sum()
        if kind == "some":
            return SMALL * sum((y[t, b].square().sum() for t, b in some), y.sum() * 0)
        found = {"all": y, "last": y[-1], "rows": y[:, row], "empty": y[:0], "zero": y * 0}
        return SMALL * found[kind].square().sum()

    def backward(self):
        losses, self.losses = self.losses, []
        losses = [loss for loss in losses if loss.requires_grad]
        passes = [losses]
        if len(losses) > 1 and self.chance(0.3, "several passes"):
            passes = [losses[:1], losses[1:]]
        passes = 2 * passes if self.loop.is_doubled else passes
        keep = self.loop.mode != "windows"
        for k, some in enumerate(passes):
            if not some:
                continue
            total = sum(some)
            self.seen.append(total.detach().clone())
            retain = keep or k + 1 < len(passes)
            if self.loop.update == "grad":
                found = torch.autograd.grad(
                    total, self.learnt, retain_graph=retain, allow_unused=True
                )
                for p, g in zip(self.learnt, found, strict=True):
                    if g is not None:
                        p.grad = g if p.grad is None else p.grad + g
            else:
                total.backward(retain_graph=retain)
        if self.loop.mode == "windows" and self.chance(0.7):
            self.step()

    def hand_back(self):
        """Hand gradients on from where they left a window, the last window first."""
        for state, leaf in reversed(self.leaves):
            pairs = [(state, leaf)] if torch.is_tensor(state) else zip(state, leaf, strict=True)
            pairs = [(s, v.grad) for s, v in pairs if v.grad is not None and s.requires_grad]
            if pairs:
                tensors, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(tensors, gradients, retain_graph=True)

    def step(self):
        if self.loop.update in ("data", "grad"):
            for p in self.learnt:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-1e-3)
                    p.grad = None
        elif self.optimizer is not None:
            self.optimizer.step()
            if self.chance(0.5):
                self.optimizer.zero_grad()


def same(a, b):
    """Whether two runs computed the same, to the bit."""
    return len(a) == len(b) and all(
        torch.equal(v, w) and np.array_equal(v.numpy(), w.numpy())
        for v, w in zip(a, b, strict=True)
    )
