# %% [markdown]
# # From the equations to a trained network
#
# After this tutorial you can write backpropagation through time yourself, in two loops and in one;
# say what truncation leaves out; compute how fast a gradient vanishes; and choose a network that
# learns what another cannot. You need NumPy, the chain rule and half an hour. Every number below a
# cell was computed by it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import bptt
from bptt.textbook import Model, RNNLayer, Softmax, check_backward

torch.set_num_threads(1)
plt.rcParams.update(
    {"figure.figsize": (7.2, 2.8), "figure.constrained_layout.use": True}
)

# %% [markdown]
# ## One step
#
# A recurrent network reads a sentence word by word. At each step it mixes the word with what it
# remembers, and from what it then remembers it predicts the next word:
#
# $$a_t = U x_t + W s_{t-1} \qquad s_t = \tanh(a_t) \qquad o_t = V s_t \qquad \hat y_t = \mathrm{softmax}(o_t)$$
#
# The loss of a step is $L_t = -\log \hat y_t[y_t]$, that of a sentence is their sum. Ten words, six
# hidden units, and a sentence of eight words, each followed by the next:

# %%
C, H = 10, 6
rng = np.random.default_rng(1)
U, W, V = (rng.normal(0, 0.6, shape) for shape in ((H, C), (H, H), (C, H)))
sentence = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])
x, y = sentence[:-1], sentence[1:]


def forward(x, U, W, V):
    """Return states [T + 1, H], of which the last is zero, and outputs [T, C]."""
    s, o = np.zeros((len(x) + 1, len(W))), np.zeros((len(x), len(V)))
    for t in range(len(x)):
        s[t] = np.tanh(U[:, x[t]] + W @ s[t - 1])  # s[-1] is the spare row: zero
        o[t] = V @ s[t]
    return s, o


def loss(x, y, U, W, V):
    _, o = forward(x, U, W, V)
    return sum(Softmax().loss(o[t], y[t]) for t in range(len(y)))


print(
    f"loss per word {loss(x, y, U, W, V) / len(x):.2f}, of a guess {np.log(C):.2f}"
)

# %% [markdown]
# $U x_t$ is column $x_t$ of $U$, because $x_t$ is a column of zeros with a single one. The spare
# row of `s` saves a special case: in NumPy `s[-1]` is the last row, and it stays zero.
#
# ## One step back
#
# The step is made of five gates: two products, a sum, tanh, a product. Each knows its own
# derivative, and the backward pass takes them from the last to the first.
# [`bptt.textbook`](../textbook.md) has them one by one; `RNNLayer` puts them together:

# %%
step = RNNLayer()
step.forward(x[0], np.zeros(H), U, W, V)
# ∂L/∂o: the prediction, less 1 at the right word
e = Softmax().diff(step.mulv, y[0])
# ∂L/∂s = Vᵀ e, and e sᵀ for V
ds, dV = step.backward_output(V, e)
# Through tanh: to the state before, to U and to W
dprev_s, du, dW = step.backward(W, ds)
delta = (1 - step.s**2) * ds  # tanh' = 1 - tanh²
assert np.allclose(du, delta)
assert np.allclose(dprev_s, W.T @ delta)
print("∂L₀/∂o:", e.round(2))

# %% [markdown]
# The loss reaches $V$ here and now. It reaches $W$ here *and at every earlier step*, since
# $s_{t-1}$ was made with the same $W$: that is all that is special about backpropagation *through
# time*.
#
# ## Two loops
#
# The literal way: take the losses one after another, and each of them back to the beginning. With
# $\delta_{t,i}$ for what the loss of step $t$ says about $a_i$,
#
# $$\frac{\partial L}{\partial W} = \sum_t \sum_{i \le t} \delta_{t,i}\, s_{i-1}^\top \qquad
#   \delta_{t,t} = \tanh'(a_t) \odot V^\top e_t \qquad
#   \delta_{t,i} = \tanh'(a_i) \odot W^\top \delta_{t,i+1}$$


# %%
def two_loops(x, y, U, W, V):
    s, o = forward(x, U, W, V)
    dU, dW, dV = np.zeros_like(U), np.zeros_like(W), np.zeros_like(V)
    for t in range(len(x)):
        e = Softmax().diff(o[t], y[t])
        dV += np.outer(e, s[t])
        ds = V.T @ e
        for i in range(t, -1, -1):
            delta = (1 - s[i] ** 2) * ds
            dU[:, x[i]] += delta
            dW += np.outer(delta, s[i - 1])
            ds = W.T @ delta
    return dU, dW, dV


# %% [markdown]
# Never believe a gradient that you wrote yourself. The slope of the loss is another way to the same
# number: change one weight a little, in both directions. `check_backward` does so with every entry
# of every parameter, on sentences that it draws, and if something is wrong it [says which mistake
# it is](../own-backward-pass.md).

# %%
report = check_backward(two_loops)
print(report)
assert report

# %% [markdown]
# ## One loop
#
# All the losses that arrive at a step go the same way from there on. So add them up on arrival, and
# go back once:
#
# $$\delta_t = \tanh'(a_t) \odot \left( V^\top e_t + W^\top \delta_{t+1} \right)$$


# %%
def one_loop(x, y, U, W, V):
    s, o = forward(x, U, W, V)
    T = len(x)
    e = np.array([Softmax().diff(o[t], y[t]) for t in range(T)])
    delta = np.zeros((T + 1, len(W)))
    for t in reversed(range(T)):
        delta[t] = (1 - s[t] ** 2) * (V.T @ e[t] + W.T @ delta[t + 1])
    dU = np.zeros_like(U)
    np.add.at(dU.T, x, delta[:T])  # a word that occurs twice is added twice
    return dU, delta[:T].T @ s[np.arange(T) - 1], e.T @ s[:T]


assert check_backward(one_loop)
gaps = [
    abs(a - b).max()
    for a, b in zip(two_loops(x, y, U, W, V), one_loop(x, y, U, W, V))
]
print(f"the two differ by at most {max(gaps):.0e}")
assert max(gaps) < 1e-12

# %% [markdown]
# Two loops take $T(T+1)/2$ steps back, one loop takes $T$. This is what every library runs,
# `bptt.RNN` too: give it the same weights, and PyTorch's `backward()` returns the same gradient.

# %%
rnn = bptt.RNN(C, H, bias=False).double()
weights = {"weight_ih_l0": torch.tensor(U), "weight_hh_l0": torch.tensor(W)}
rnn.load_state_dict(weights)
onehot = torch.eye(C, dtype=torch.float64)
states, _ = rnn(onehot[x])
scores = states @ torch.tensor(V).T
torch.nn.functional.cross_entropy(
    scores, torch.tensor(y), reduction="sum"
).backward()
assert np.allclose(rnn.weight_hh_l0.grad.numpy(), one_loop(x, y, U, W, V)[1])
print("bptt.RNN agrees")

# %% [markdown]
# ## Truncation
#
# A long text has no end to go back from. What is left out then is easiest to see in the double sum:
# it has a term for each loss $t$ and each earlier use $i$ of $W$. A **credit** gives each term a
# weight. Row $t$ is a loss, column $i$ a step that it is credited to:

# %%
credits = {
    "every loss goes back to the beginning": bptt.Full(),
    "cut every 4 steps: detach the state": bptt.Truncated(4),
    "every loss reaches 4 steps": bptt.Truncated(every=1, reach=4),
}
for name, credit in credits.items():
    print(f"{name}\n{credit.plan(8)}\n")

# %% [markdown]
# The second and the third are both called truncation to 4 steps, but they are not the same. A
# `detach` every 4 steps makes *blocks*: the first loss of a block is credited to its own step alone.
# Ending the inner of the two loops early, after 4 steps, makes a *band*: all losses reach equally
# far. The one loop cannot make a band, because it has already added up the losses.
#
# How much is lost? Here are the sizes of all terms, for a sentence of 40 words and a network of 40
# units: once as it is usually drawn at the start, and once with an orthogonal $W$, which keeps
# lengths.

# %% alt="Three triangles of terms: of the usual network only the diagonal is strong; of the orthogonal one all of it; and that with blocks of ten left over"
words = np.random.default_rng(0).integers(0, 50, 41)
usual = Model(50, 40, bptt_truncate=None, seed=0)
orthogonal = Model(50, 40, bptt_truncate=None, seed=0)
orthogonal.W = np.linalg.qr(orthogonal.W)[0]
of_usual, of_orthogonal = (
    m.terms(words[:-1], words[1:]) for m in (usual, orthogonal)
)
blocks = bptt.Truncated(10).plan(40).matrix()
shown = {
    "usual W": of_usual,
    "orthogonal W": of_orthogonal,
    "cut every 10": of_orthogonal * blocks,
}
figure, panels = plt.subplots(1, 3, sharey=True)
for panel, (title, norms) in zip(panels, shown.items()):
    image = panel.imshow(np.log10(np.maximum(norms, 1e-4)), vmin=-4, vmax=1)
    panel.set(title=title, xlabel="step i")
panels[0].set_ylabel("loss t")
figure.colorbar(image, ax=panels, label="log₁₀ of a term's norm")
plt.show()


# %%
def lost(model, k):
    """The share of dW that is lost where each loss goes back over k transitions."""
    model.bptt_truncate = k
    sentence = words[:-1], words[1:]
    full, cut = model.bptt_one_loop(*sentence)[1], model.bptt(*sentence)[1]
    return np.linalg.norm(cut - full) / np.linalg.norm(full)


for k in (0, 4, 9, 19):
    shares = f"{lost(usual, k):4.0%} of the usual dW, {lost(orthogonal, k):4.0%}"
    print(f"{k:2} transitions lose {shares} of the orthogonal one's")
assert lost(usual, 9) < 0.01 < 0.3 < lost(orthogonal, 9)

# %% [markdown]
# Truncation to ten steps costs the usual network nothing, because this $W$ lets nothing through
# anyway. That is no comfort; it is the next problem.
#
# ## Vanishing gradients
#
# From $s_t$ back to $s_{t-k}$ the gradient is multiplied by $k$ matrices, the transposes of
# $\mathrm{diag}(\tanh'(a_j))\,W$. Leave tanh out for a moment, and the product is a power. If $W$
# is symmetric, with eigenvalues $\lambda_i$ and orthonormal eigenvectors $q_i$, a gradient $v$ at
# the last state has $k$ steps earlier the length
#
# $$\lVert W^k v \rVert = \sqrt{\textstyle\sum_i \lambda_i^{2k} (q_i^\top v)^2}$$
#
# `bptt.gradient_flow` measures the same on any recurrent module, here a linear one in two lines:

# %% alt="Gradient norms by lag on a logarithmic scale: measured points lie on the curves of the closed form, falling for eigenvalues below 1, rising for 1.05"
T, n = 60, 20
random = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).double()
q = torch.linalg.qr(random)[0]
v = torch.ones(n).double() / n**0.5
for largest in (0.8, 0.95, 1.0, 1.05):
    eigenvalues = largest * torch.linspace(0.3, 1, n).double()
    A = q @ torch.diag(eigenvalues) @ q.T

    def linear(x, state, A=A):
        return x + state @ A, x + state @ A

    zero = torch.zeros(T, 1, n).double()
    flow = bptt.gradient_flow(
        bptt.Stepwise(linear), zero, lambda y: y @ v, zero[0], times=[T - 1]
    )
    measured = flow.of()[0].flip(0)[1:]  # by lag, from 1 on
    lags = torch.arange(1, T)
    squares = eigenvalues ** (2 * lags[:, None]) * (v @ q) ** 2  # [lag, i]
    formula = squares.sum(1).sqrt()
    line = plt.semilogy(lags, formula, label=f"largest eigenvalue {largest}")[0]
    plt.semilogy(
        lags[::4], measured[::4], "o", markersize=3, color=line.get_color()
    )
    assert torch.allclose(measured, formula, rtol=1e-9)
plt.xlabel("steps back")
plt.ylabel("norm of the gradient")
plt.legend(fontsize="small")
plt.show()

# %% [markdown]
# The points lie on the curves. Below 1 the gradient of the far past is gone within a few dozen
# steps, exponentially; above 1 it explodes. tanh only takes away, since $\tanh' \le 1$. For a
# general $W$ the largest *singular* value bounds one step, and [why recurrent networks
# forget](../forgetting.md) goes on from here.
#
# ## A task that needs memory
#
# Does it matter? The network is told one of four names, then hears 30 to 60 words that mean
# nothing, and is asked for the name. A guess is right in a quarter of the cases and has a loss of
# $\log 4 = 1.39$.

# %%
# Words 0 to 3 are names, 4 to 9 mean nothing, 10 asks.
NAMES, NOISE, SIZE = 4, 6, 11
SHORTEST, LONGEST = 30, 60


def draw(distance, count, g):
    """Return one-hot words [T, B, C] and the name that is asked for [B]."""
    name = torch.randint(NAMES, (1, count), generator=g)
    noise = torch.randint(NAMES, NAMES + NOISE, (distance - 1, count), generator=g)
    words = torch.cat([name, noise, torch.full((1, count), SIZE - 1)])
    return torch.nn.functional.one_hot(words, SIZE).float(), name[0]


short, _ = draw(6, 3, torch.Generator().manual_seed(0))
print(short.argmax(-1).T)  # three short ones, a row each

# %% [markdown]
# Three networks of 32 units: an RNN; an LSTM, whose cell $c_t = f_t \odot c_{t-1} + i_t \odot g_t$
# multiplies the gradient by the forget gate $f_t$ alone; and the same LSTM with these gates opened
# at the start, so that its units remember for 2 to 60 steps (`bptt.init.chrono_`). First, before
# any training, how far back does the gradient of the answer reach?


# %% alt="Gradient by lag of three untrained networks: RNN and LSTM fall below one millionth within 25 steps, the LSTM with open gates stays within a factor of ten"
def networks():
    torch.manual_seed(0)
    return {
        "RNN": bptt.RNN(SIZE, 32),
        "LSTM": bptt.LSTM(SIZE, 32),
        "LSTM, gates open": bptt.init.chrono_(bptt.LSTM(SIZE, 32), longest=LONGEST),
    }


x, _ = draw(LONGEST, 16, torch.Generator().manual_seed(0))
reach = {}
for name, network in networks().items():
    flow = bptt.gradient_flow(network, x, times=[LONGEST])
    reach[name] = flow.by_lag.mean[SHORTEST] / flow.by_lag.mean[1]
    plt.semilogy(flow.by_lag.lag[1:], flow.by_lag.mean[1:], label=name)
    print(
        f"{name}: {flow.verdict.kind}, {reach[name]:.0e} left after {SHORTEST} steps"
    )
assert max(reach["RNN"], reach["LSTM"]) < 1e-4 < 0.1 < reach["LSTM, gates open"]
plt.xlabel("steps back")
plt.ylabel("norm of the gradient")
plt.legend(fontsize="small")
plt.show()

# %% [markdown]
# An LSTM does not remember by itself: with forget gates that are half open, half is lost in a step.
# Now train them, by an ordinary loop. The gradient is exact, so nothing but the network decides.


# %% alt="Learning curves of the three: RNN and LSTM stay at the loss of a guess, the LSTM with open gates falls to zero within 300 updates"
def train(network, updates=600, rate=3e-3):
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    readout = torch.nn.Linear(32, NAMES)
    parameters = [*network.parameters(), *readout.parameters()]
    optimizer, losses = torch.optim.Adam(parameters, rate), []
    for _ in range(updates):
        x, name = draw(
            int(torch.randint(SHORTEST, LONGEST + 1, (), generator=g)), 32, g
        )
        states, _ = network(x)
        loss = torch.nn.functional.cross_entropy(readout(states[-1]), name)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    x, name = draw(LONGEST, 1000, g)
    with torch.no_grad():
        right = (readout(network(x)[0][-1]).argmax(-1) == name).float().mean()
    return losses, right.item()


right = {}
for name, network in networks().items():
    losses, right[name] = train(network)
    plt.plot(losses, label=name, linewidth=1)
    print(f"{name}: {right[name]:.0%} right over {LONGEST} steps")
plt.axhline(np.log(NAMES), color="0.4", linestyle=":", linewidth=1, label="a guess")
plt.xlabel("update")
plt.ylabel("loss")
plt.legend(fontsize="small")
plt.show()
assert max(right["RNN"], right["LSTM"]) < 0.35
assert right["LSTM, gates open"] > 0.95

# %% [markdown]
# What no gradient reaches is not learnt. Once a gradient arrives, it takes a few hundred updates.
# (A tiny gradient is not zero, and Adam divides each gradient by its size. So over shorter distances
# and with a larger rate, even a plain RNN finds the name in some runs, but not in others.)
#
# ## Play with it
#
# [![A page in the browser: two networks side by side, one with too short a reach and a quarter of the letters right, one with all](../images/playground.png)](../playground/index.html)
#
# [The playground](../playground/index.html) trains two networks on such a task while you watch: one
# whose credit does not reach the letter that is asked for, and one whose credit does. Move the lag,
# the reach and the initial weights, and see when a reach that is too short succeeds all the same.
#
# ## Where to go on
#
# - [Why does my RNN not learn?](why-not-learning.py) finds what is wrong with a training loop.
# - [Train on a stream](train-on-a-stream.py) truncates where a text never ends.
# - [The textbook](../textbook.md) has all of this in NumPy, with the errors that are widely copied.
# - [Coming from a tutorial](../coming-from-a-tutorial.md) finds the formulas of five well-known
#   tutorials here.
