# %% [markdown]
# # Train on a stream
#
# After this tutorial you can train on a sequence that is too long to go back through: carry the
# state from window to window, let each loss reach back beyond its window, forget where a new
# document begins, stop and go on to the same bits, and evaluate without fooling yourself.

# %%
import math
import tempfile
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import bptt

torch.set_num_threads(1)
plt.rcParams.update(
    {"figure.figsize": (7.2, 2.8), "figure.constrained_layout.use": True}
)

# %% [markdown]
# ## A stream of documents
#
# The text is one that every Python brings along: the language reference, as `help()` shows it. Its
# documents stand one behind the other, character by character, and `starts` says where one begins.
# Every eighth document is kept apart for the evaluation.

# %%
documents = [topics[name] for name in sorted(topics)]
characters = sorted(set("".join(documents)))
number = {character: n for n, character in enumerate(characters)}


def as_stream(documents):
    """Return the characters' numbers [T], and where a document begins [T]."""
    ids = np.array([number[c] for document in documents for c in document])
    starts = np.zeros(len(ids), dtype=np.int64)
    starts[np.cumsum([0] + [len(document) for document in documents[:-1]])] = 1
    return ids, starts


training = as_stream([d for n, d in enumerate(documents) if n % 8])
held_out = as_stream(documents[::8])
print(f"{len(documents)} documents with {len(characters)} different characters")
print(f"{len(training[0]):,} to train on, {len(held_out[0]):,} held out")

# %% [markdown]
# One stream would make slow progress: an update would see 32 characters. `bptt.data.streams` cuts
# the text into 32 long parts that are read side by side, and goes along all of them, window after
# window. Column 3 of one window continues column 3 of the one before: nothing is shuffled, and that
# is what makes a carried state meaningful.

# %%
STREAMS, WINDOW = 32, 32


def windows(text, streams=STREAMS):
    """Yield characters, those that follow, and where a document begins, [T, B]."""
    ids, starts = (
        bptt.data.streams(row, batch=streams, steps=WINDOW) for row in text
    )
    for (x, target), (start, _) in zip(ids, starts, strict=True):
        yield x, target, start.bool()


first, second, *_ = windows(training)
print("".join(characters[c] for c in first[0][:, 3]))
print("".join(characters[c] for c in second[0][:, 3]))
per_epoch = sum(1 for _ in windows(training))
print(f"{per_epoch} windows in an epoch")

# %% [markdown]
# ## The loop
#
# `stream.advance` takes the place of the call of the network. Three things happen in it:
#
# - The **state** of the window before is carried in, without its graph.
# - **`resets`** sets it to zero where a document begins, in the middle of a window too.
# - The **credit** says how far back a loss may reach. With windows of 32 steps and
#   `Truncated(every=32, reach=64)` it is at least 33 steps, for the last loss of a window 64. The
#   32 steps before the window are run again for that, from the state that was kept before them,
#   under the weights of today. A graph kept from the last update would belong to weights that no
#   longer exist.

# %%
CREDIT = bptt.Truncated(every=WINDOW, reach=2 * WINDOW)
# The same, smaller: three windows of 3 steps.
print(bptt.Truncated(every=3, reach=6).plan(9))

# %% [markdown]
# Row $t$ is a loss, column $s$ a step that it is credited to. Everything else is an ordinary loop.


# %%
class Reader(nn.Module):
    """Predicts the next character."""

    def __init__(self):
        super().__init__()
        self.gru = bptt.GRU(len(characters), 128)
        self.readout = nn.Linear(128, len(characters))

    def bits(self, states, target):
        """The mean loss in bits per character."""
        logits = self.readout(states).flatten(0, 1)
        return nn.functional.cross_entropy(logits, target.flatten()) / math.log(2)


def one_hot(ids):
    return nn.functional.one_hot(ids, len(characters)).float()


class Training:
    """A reader, its optimizer and its place on the stream."""

    def __init__(self):
        torch.manual_seed(0)
        self.reader = Reader()
        self.optimizer = torch.optim.Adam(self.reader.parameters(), lr=4e-3)
        self.stream, self.updates = bptt.Stream(), 0

    def update(self, x, target, starts):
        states, self.stream = self.stream.advance(
            self.reader.gru, one_hot(x), credit=CREDIT, resets=starts
        )
        loss = self.reader.bits(states, target)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
        self.optimizer.step()
        self.updates += 1
        return loss.item()

    def run(self, until):
        """Train until so many updates are done; return the loss of each."""
        losses = []
        while self.updates < until:
            done = self.updates % per_epoch
            if done == 0:  # the text begins again, and with it the stream
                self.stream = bptt.Stream()
            todo = islice(
                windows(training), done, min(per_epoch, done + until - self.updates)
            )
            losses += [self.update(*window) for window in todo]
        return losses


training_run = Training()
UPDATES = 2 * per_epoch
losses = training_run.run(UPDATES // 2 + 100)  # somewhere within the second epoch

# %% [markdown]
# ## Stop, and go on to the same bits
#
# What has to be saved is more than the weights: the optimizer, how many updates there were, and the
# stream, that is the state, the steps that will be run again, the state before those, and where
# documents begin in them. `stream.state_dict()` has all of it.

# %%
place = Path(tempfile.mkdtemp()) / "run.pt"
torch.save(
    {
        "reader": training_run.reader.state_dict(),
        "optimizer": training_run.optimizer.state_dict(),
        "stream": training_run.stream.state_dict(),
        "updates": training_run.updates,
    },
    place,
)
print(f"after {training_run.updates} updates: {place.stat().st_size / 1e6:.1f} MB")

resumed = Training()  # as in a new process
saved = torch.load(place, weights_only=True)
for part in ("reader", "optimizer", "stream"):
    getattr(resumed, part).load_state_dict(saved[part])
resumed.updates = saved["updates"]

# %% [markdown]
# Now let the first run go on for 40 updates as if nothing had happened, and the second from its
# file. They do the same, bit for bit:

# %%
through = training_run.run(training_run.updates + 40)
again = resumed.run(resumed.updates + 40)
assert through == again
for a, b in zip(
    training_run.reader.parameters(), resumed.reader.parameters(), strict=True
):
    assert torch.equal(a, b)
losses += again + resumed.run(UPDATES)

# %% alt="The training loss in bits per character falls from above 6 to below 3 over two epochs"
smooth = torch.tensor(losses[: len(losses) // 20 * 20]).reshape(-1, 20).mean(1)
plt.plot(20 * torch.arange(1, len(smooth) + 1), smooth)
plt.axvline(per_epoch, color="0.4", linestyle=":", linewidth=1)
plt.xlabel("update (dotted: the second epoch begins)")
plt.ylabel("bits per character")
plt.show()
print(f"at first {losses[0]:.2f}, a guess {math.log2(len(characters)):.2f}")
print(f"over the last 50 updates {np.mean(losses[-50:]):.2f}")
assert np.mean(losses[-50:]) < 3

# %% [markdown]
# ## Evaluate
#
# The held-out documents are read in one go, each character once, as one stream from beginning to
# end. The state is carried here too. If it is dropped at each window, every window begins with
# characters that are predicted from nothing, and the number depends on the length of the window; if
# it is not reset, each document begins with the memory of another.

# %%


@torch.no_grad()
def evaluate(reader, carry=True, reset=True):
    state, bits, count = None, 0.0, 0
    for x, target, starts in windows(held_out, streams=1):
        resets = starts if reset else None
        states, after = reader.gru(one_hot(x), state, resets=resets)
        bits += reader.bits(states, target).item() * len(x)
        count += len(x)
        state = after if carry else None
    return bits / count


found = evaluate(resumed.reader)
dropped = evaluate(resumed.reader, carry=False)
frequencies = np.bincount(held_out[0]) / len(held_out[0])
by_frequency = -sum(p * math.log2(p) for p in frequencies if p > 0)
print(f"held out: {found:.2f} bits per character")
print(f"with the state dropped at every window: {dropped:.2f}")
print(f"by the characters' frequencies alone: {by_frequency:.2f}")
assert found < dropped < by_frequency

# %% [markdown]
# ## Was the credit long enough?
#
# Ask the trained network. Over six windows in a row there is still an exact gradient to compare
# with, and `estimator_error` says how far that of a credit is away from it, relative to its size:

# %%
x, target, starts = (
    torch.cat(parts) for parts in zip(*islice(windows(training), 6))
)
bias = {}
for reach in (32, 64, 96, 128):
    error = bptt.estimator_error(
        resumed.reader.gru,
        one_hot(x),
        lambda states: resumed.reader.bits(states, target),
        bptt.Truncated(every=WINDOW, reach=reach),
        resets=starts,
    )
    bias[reach] = error.total.bias
    print(f"every=32, reach={reach}: the gradient is off by {bias[reach]:.1%}")
assert bias[128] < bias[64] < bias[32]
assert bias[64] < 0.1

# %% [markdown]
# A plain `detach` between windows, the first line, costs more than twice as much as the credit we
# took. That is for what this network has learnt. It says nothing about what it might have learnt
# from a longer reach: [which credit to take](../credit.md#which-one).
#
# ## Let it write


# %%
@torch.no_grad()
def write(reader, beginning, length, g):
    ids = [number[c] for c in beginning]
    states, state = reader.gru(one_hot(torch.tensor(ids)[:, None]))
    for _ in range(length):
        p = (reader.readout(states[-1, 0]) / 0.6).softmax(0)
        ids.append(int(torch.multinomial(p, 1, generator=g)))
        states, state = reader.gru(one_hot(torch.tensor([ids[-1:]])), state)
    return "".join(characters[n] for n in ids)


print(write(resumed.reader, "The statement", 300, torch.Generator().manual_seed(0)))

# %% [markdown]
# ## Where to go on
#
# - [`bptt train`](../language-models.md) does all this from the command line, on your own text.
# - [Training loops](../how-to/training-loops.md) puts the stream into Lightning, ignite and others.
# - [Train on many processes](../many-machines.md) deals the streams out.
# - [Forecasting](../how-to/forecasting.md) is the same for time series.
