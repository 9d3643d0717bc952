# %% [markdown]
# # Why does my RNN not learn?
#
# After this tutorial you can take a training loop whose loss does not fall and find out why: look
# at the gradient, audit the loop, mend both, and keep them mended with a test. You should have
# trained a network in PyTorch before.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import bptt

torch.set_num_threads(1)
plt.rcParams.update(
    {"figure.figsize": (7.2, 2.8), "figure.constrained_layout.use": True}
)

# %% [markdown]
# ## The task, and a loop that fails
#
# An agent walks along corridors. A sign at the entrance says which of four doors to take at the
# end, 25 to 40 steps later; what it sees in between means nothing. Then the next corridor begins.
# 32 agents walk side by side, each in its own step:

# %%
# Things seen: 4 signs, 6 things that mean nothing, the doors.
SIGNS, SIZE, BATCH, WINDOW = 4, 11, 32, 20
SHORTEST, LONGEST = 25, 40


def walk(steps, g):
    """Return what is seen [T, B, I], the right doors [T, B], and where a walk begins."""
    seen = torch.randint(SIGNS, SIZE - 1, (steps, BATCH), generator=g)
    doors = torch.full((steps, BATCH), -1)  # -1: nothing is asked
    starts = torch.zeros(steps, BATCH, dtype=torch.bool)
    for agent in range(BATCH):
        t = 0
        while t < steps:
            end = t + int(torch.randint(SHORTEST, LONGEST + 1, (), generator=g)) - 1
            sign = int(torch.randint(SIGNS, (), generator=g))
            seen[t, agent], starts[t, agent] = sign, True
            if end < steps:
                seen[end, agent], doors[end, agent] = SIZE - 1, sign
            t = end + 1
    return nn.functional.one_hot(seen, SIZE).float(), doors, starts


x, doors, starts = walk(16_000, torch.Generator().manual_seed(0))
data = list(zip(x.split(WINDOW), doors.split(WINDOW), starts.split(WINDOW)))
print(f"{len(data)} windows of {WINDOW} steps, {int((doors >= 0).sum()):,} doors")

# %% [markdown]
# The loop is one that anybody could have written: an `LSTMCell`, windows of 20 steps with a
# `detach` between them, a mask that clears the memory where a new corridor begins.


# %%
def loss_of(answers, doors):
    logits, right = answers.flatten(0, 1), doors.flatten()
    how = {"ignore_index": -1, "reduction": "sum"}
    return nn.functional.cross_entropy(logits, right, **how) / BATCH


def share_right(answers, doors):
    asked = doors >= 0
    return (answers.argmax(-1)[asked] == doors[asked]).float().mean().item()


def train_as_found(cell, head, data, meter=None):
    parameters = [*cell.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    h = c = torch.zeros(BATCH, 32)
    keep, right = torch.ones(BATCH, 1), []
    for x, doors, starts in data:
        h, c, answers = h.detach(), c.detach(), []
        for t in range(len(x)):
            h, c = cell(x[t], (h * keep, c * keep))
            answers.append(head(h))
            # Forget where a new corridor begins.
            keep = 1 - starts[t].float()[:, None]
        answers = torch.stack(answers)
        optimizer.zero_grad()
        loss_of(answers, doors).backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if meter is not None:
            meter.update(norm, x)
        optimizer.step()
        right.append(share_right(answers, doors))
    return right


def last(right):
    """The share of right answers over the last hundred windows."""
    return float(torch.tensor(right[-100:]).nanmean())


torch.manual_seed(0)
cell, head = nn.LSTMCell(SIZE, 32), nn.Linear(32, SIGNS)
as_found = train_as_found(cell, head, data)
print(f"right: {last(as_found):.0%}, by guessing {1 / SIGNS:.0%}")
assert last(as_found) < 0.3

# %% [markdown]
# It learns nothing, and no error says so. Is the learning rate wrong, the network too small, the
# task too hard? Measure before you turn knobs.
#
# ## See: how far does the gradient reach?
#
# `bptt.gradient_flow` follows the gradient from each loss back to each earlier state. It takes
# any recurrent module; `bptt.Stepwise` makes one of a cell.

# %% alt="Gradient by lag: of the cell as it was made it falls a hundredfold within 10 steps, with open gates by less than ten within 40"
torch.manual_seed(0)
cell = nn.LSTMCell(SIZE, 32)
flow = bptt.gradient_flow(bptt.Stepwise(cell), x[:100])
plt.semilogy(flow.by_lag.lag[1:60], flow.by_lag.mean[1:60], label="as it was made")
print(flow.verdict.words)
print(flow.advice[0].text)

# What was advised, with what we know of the task:
bptt.init.chrono_(cell, longest=LONGEST)
opened = bptt.gradient_flow(bptt.Stepwise(cell), x[:100])
plt.semilogy(opened.by_lag.lag[1:60], opened.by_lag.mean[1:60], label="gates open")
plt.axvspan(
    SHORTEST - 1, LONGEST - 1, color="0.9", label="from the doors to the sign"
)
plt.xlabel("steps back")
plt.ylabel("norm of the gradient")
plt.legend(fontsize="small")
plt.show()
print(
    f"99 % of the gradient within {flow.horizon()} steps, now within {opened.horizon()}"
)
assert flow.verdict.kind == "vanishing"
assert flow.horizon() < SHORTEST
assert opened.horizon() > LONGEST

# %% [markdown]
# That is one cause: with its usual initial weights this network forgets within ten steps, and
# [a dependency that no gradient reaches is not learnt](../forgetting.md). Train again, and let a
# `FlowMeter` look at the gradient while training goes on:

# %%
head = nn.Linear(32, SIGNS)
meter = bptt.FlowMeter(bptt.Stepwise(cell), every=100)
gates_open = train_as_found(cell, head, data, meter)
print(meter.reading)
print(f"right: {last(gates_open):.0%}")
assert last(gates_open) < 0.3

# %% [markdown]
# Still nothing. The meter shows the network as it is in each window, and there it is well. What
# is wrong lies outside the network, where no measurement of the network sees it.
#
# ## Audit: what does the loop really train?
#
# `bptt.audit` runs the code as it is and records which losses send a gradient to which steps, and
# what the state really holds. Four windows are enough. What a corridor is, no code says, so
# `episodes=` does.

# %% alt="Two triangles, credit and memory, with the fault ringed: the state is cleared one step after each start"
report = bptt.audit(
    lambda: train_as_found(cell, head, data[:4]),
    cell,
    episodes=starts[: 4 * WINDOW],
)
print(*report.faults, *report.facts, sep="\n\n")
report.figure()

# %% [markdown]
# Two things, both silent:
#
# - **The reset is one step late.** `keep` is computed at step $t$ and used at step $t + 1$. So the
#   memory is cleared not before the sign is read but right after. What the agent has to remember
#   is erased before anything else.
# - **Losses are credited to at most 20 steps.** The window is 20 steps long and the sign lies 24
#   to 39 steps back. A `detach` between windows cuts the gradient, always.
#
# Every derivative in this loop is right. A gradient check would have passed.

# %%
assert [fault.kind for fault in report.faults] == ["reset-late"]
assert report.credit.shape == (4 * WINDOW, 4 * WINDOW)
assert not any(
    report.credit[t, s] for t in range(4 * WINDOW) for s in range(t - WINDOW)
)

# %% [markdown]
# ## Mend
#
# Each has its remedy, and each is one argument:
#
# - `resets=` clears the state *before* the steps that it marks;
# - `credit="truncated:every=20,reach=60"` keeps the windows of 20 steps, with an update after
#   each, and lets every loss reach back 41 steps or more. [`bptt.Stream`](../credit.md#streams)
#   carries the state, and runs the 40 steps before a window again, under the weights of today;
# - `bptt.init.chrono_` opens the gates.


# %%
def train(data, credit="truncated:every=20,reach=60", gates_open=True):
    torch.manual_seed(0)
    lstm, head = bptt.LSTM(SIZE, 32), nn.Linear(32, SIGNS)
    if gates_open:
        bptt.init.chrono_(lstm, longest=LONGEST)
    return train_mended(lstm, head, data, credit)


def train_mended(lstm, head, data, credit):
    parameters = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    stream, right = bptt.Stream(), []
    for x, doors, starts in data:
        y, stream = stream.advance(lstm, x, credit=credit, resets=starts)
        answers = head(y)
        optimizer.zero_grad()
        loss_of(answers, doors).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right.append(share_right(answers, doors))
    return right


# %% [markdown]
# Do all three matter? Leave out each one in turn:

# %% alt="Learning curves: with all three mended the share of right answers rises from a quarter to one; with any of them left out it stays at a quarter"
one_late = starts.roll(1, 0).split(WINDOW)
late = [(x, doors, starts) for (x, doors, _), starts in zip(data, one_late)]
curves = {
    "all three": train(data),
    "reset late": train(late),
    "window cut": train(data, credit="truncated:20"),
    "gates half open": train(data, gates_open=False),
}
for name, right in curves.items():
    smooth = torch.tensor(right).nan_to_num(0.25).unfold(0, 25, 25).mean(1)
    plt.plot(25 * torch.arange(1, len(smooth) + 1), smooth, label=name)
    print(f"{name}: {last(right):.0%}")
plt.axhline(1 / SIGNS, color="0.4", linestyle=":", linewidth=1)
plt.xlabel("update")
plt.ylabel("right answers")
plt.legend(fontsize="small")
plt.show()
assert last(curves.pop("all three")) > 0.95
assert max(map(last, curves.values())) < 0.35

# %% [markdown]
# Any one of the three faults was enough to learn nothing at all. This is why turning one knob at a
# time so often fails: mend two of three, and you see no difference.
#
# ## Keep it mended
#
# A fault that no error reports comes back. `bptt.assert_credit` makes what the audit found a test.
# The steps before a window are run again here, so `label=` tells it which step an input is; random
# inputs, all different, serve for that.


# %%
def test_losses_reach_back_to_the_sign():
    lstm, head = bptt.LSTM(SIZE, 32), nn.Linear(32, SIGNS)
    credit = "truncated:every=20,reach=60"
    inputs = torch.randn(6 * WINDOW, BATCH, SIZE)
    windows = [(x, *window[1:]) for x, window in zip(inputs.split(WINDOW), data)]

    def label(x):
        same = (x[:, None] == inputs).all(-1)  # [t, T, B]
        return torch.arange(BATCH).expand(len(x), BATCH), same.int().argmax(1)

    bptt.assert_credit(
        lambda: train_mended(lstm, head, windows, credit),
        lstm,
        None,
        credit,
        episodes=starts[: 6 * WINDOW],
        label=label,
        steps=20 * WINDOW,
    )


test_losses_reach_back_to_the_sign()
print("passed")

# %% [markdown]
# ## Where to go on
#
# - [Auditing a training loop](../audit.md) goes through the usual troubles, by error message.
# - [Reading a flow report](../flow.md) explains every number of `gradient_flow`.
# - [How far back: credit](../credit.md) says which credit to take.
# - [Recurrent policies](../how-to/recurrent-policies.md) is about agents and their resets.
