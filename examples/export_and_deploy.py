"""Train with bptt, deploy without it: as torch.nn's modules, and by ONNX, step by step.

What is deployed takes the state and returns it, so that a stream is fed piece by piece.
"""

import copy
import logging
import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import nn

import bptt


class Model(nn.Module):
    def __init__(self, library=bptt):
        super().__init__()
        self.gru, self.readout = library.GRU(3, 16), nn.Linear(16, 2)

    def forward(self, x, state):
        y, state = self.gru(x, state)
        return self.readout(y), state


torch.manual_seed(0)
model = Model().eval()
x, start = torch.randn(50, 1, 3), torch.zeros(1, 1, 16)
expected, last = model(x, start)

# Where torch is and bptt is not: the state_dict goes into the same model made of torch.nn.
theirs = Model(nn).eval()
theirs.load_state_dict(model.state_dict())
torch.testing.assert_close(theirs(x, start)[0], expected)
same = bptt.convert(copy.deepcopy(model), to="torch")  # or the model itself, in place
assert type(same.gru) is nn.GRU

# Where Python's torch is not: ONNX, with the state as an input and any number of steps.
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the exporter's own
    logging.disable()
    file = Path(folder, "model.onnx")
    names = {"input_names": ["x", "state"], "output_names": ["y", "next"]}
    shapes = {"dynamic_shapes": ({0: "T", 1: "B"}, {1: "B"})}
    torch.onnx.export(model, (x, start), file, **names, **shapes, verbose=False)
    session = onnxruntime.InferenceSession(file)
    state, found = start.numpy(), []
    for step in x.split(1):  # as the steps arrive
        y, state = session.run(None, {"x": step.numpy(), "state": state})
        found.append(torch.from_numpy(y))
torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(torch.from_numpy(state), last, rtol=1e-4, atol=1e-5)
print(f"{len(found)} single steps in onnxruntime give what one call gave in training")
