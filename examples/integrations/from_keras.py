"""The weights of Keras's LSTM, GRU and SimpleRNN in bptt's modules; stateful=True as a Stream."""

import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import numpy as np
import torch

import bptt

B, T, INPUTS, H, WINDOWS = 4, 5, 3, 8, 12
KINDS = {
    "LSTM": (bptt.LSTM, [0, 1, 2, 3]),
    "GRU": (bptt.GRU, [1, 0, 2]),
    "SimpleRNN": (bptt.RNN, [0]),
}


def from_keras(layer):
    kind, order = KINDS[type(layer).__name__]  # Keras's GRU has its gates in the order z, r, n
    assert getattr(layer, "reset_after", True), "torch.nn has no GRU that resets before the product"
    W, U, *bias = (torch.tensor(w) for w in layer.get_weights())
    module = kind(W.shape[0], U.shape[0], bias=bool(bias), batch_first=True)
    ours = [W.T, U.T]
    for b in bias:
        ours += [b, torch.zeros_like(b)] if b.ndim == 1 else [*b]  # a GRU has two, as here
    for parameter, theirs in zip(module.parameters(), ours, strict=True):
        blocks = theirs.chunk(len(order))
        parameter.data = torch.cat([blocks[i] for i in order])
    if len(bias) == 1 and bias[0].ndim == 1:
        module.bias_hh_l0.requires_grad_(False)  # one bias is trained there
    return module


draw = np.random.default_rng(0)
x = draw.normal(size=(WINDOWS * B, T, INPUTS)).astype("float32")
for name in KINDS:
    layer = getattr(keras.layers, name)(H, return_sequences=True)
    layer.build(x.shape)
    layer.set_weights([0.5 * draw.normal(size=w.shape) for w in layer.get_weights()])
    y = from_keras(layer)(torch.tensor(x))[0]
    torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-6)

layer = keras.layers.SimpleRNN(H, return_sequences=True, stateful=True)
model = keras.Sequential([keras.Input(batch_shape=(B, T, INPUTS)), layer])
rnn, target = from_keras(layer), np.sin(draw.normal(size=(WINDOWS * B, T, H)))
model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
model.fit(x, target, batch_size=B, shuffle=False, verbose=0)  # each batch is the next window

optimizer, stream = torch.optim.SGD(rnn.parameters(), lr=0.5), bptt.Stream()
for window, wanted in zip(torch.tensor(x).split(B), torch.tensor(target).split(B), strict=True):
    y, stream = stream.advance(rnn, window, credit=bptt.Truncated(T))
    optimizer.zero_grad()
    (y - wanted).square().mean().backward()
    optimizer.step()
for ours, theirs in zip(rnn.parameters(), from_keras(layer).parameters(), strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
print("the same outputs of three kinds of layers, and the same training of a stateful one")
