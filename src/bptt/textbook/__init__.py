"""Backpropagation through time from scratch: NumPy only, written to be read.

This is the recurrent language model of two well-known tutorials, WildML's "Recurrent Neural
Networks Tutorial" (parts 1-3, 2015) and "RNN from scratch" by pangolulu, under their names, written
anew and checked. Read ``gates``, then ``layer``, then ``model``; check a backward pass of your own
with ``check_backward``; train with ``bptt.RNN``.

The equations, with word ids as one-hot columns x_t and the zero state s_{-1} = 0::

    a_t = U x_t + W s_{t-1}     s_t = φ(a_t)     o_t = V s_t     L = -Σ_t log softmax(o_t)[y_t]

Sources: P. Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78
(1990); R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories", Neural Computation 2 (1990), for the truncated form.

>>> from bptt.textbook import Model
>>> model = Model(word_dim=5, hidden_dim=8, bptt_truncate=None, seed=0)
>>> losses = model.train([[0, 1, 2, 3]], [[1, 2, 3, 4]], learning_rate=0.5, log=None)
>>> model.predict([0, 1, 2, 3])
array([1, 2, 3, 4])
"""

from bptt.textbook.check import BackwardReport, check_backward
from bptt.textbook.gates import AddGate, MultiplyGate, ReLU, Sigmoid, Softmax, Tanh
from bptt.textbook.layer import RNNLayer
from bptt.textbook.model import Model
from bptt.textbook.text import sentence_data

__all__ = [
    "AddGate",
    "BackwardReport",
    "Model",
    "MultiplyGate",
    "RNNLayer",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "check_backward",
    "sentence_data",
]
