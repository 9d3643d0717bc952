"""A language model for other programs: as plain modules of torch.nn, and as a file of ONNX."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import bptt
from bptt._src.language_model.sampling import first_token
from bptt.errors import BpttError, ConfigError, require

if TYPE_CHECKING:
    from bptt._src.language_model.model import LanguageModel

MOST = 2**31 - 2**20
"""Bytes of weights that a file of ONNX can hold."""
TOLERANCE = 1e-4
"""How far the logits may be from the model's, relative to the largest."""


# ------------------------------------------------------------------------------- torch.nn


class TorchLanguageModel(nn.Module):
    """What :meth:`LanguageModel.to_torch` returns: modules of torch.nn in a row."""

    def __init__(
        self,
        embedding: nn.Embedding,
        recurrent: nn.RNNBase,
        readout: nn.Linear,
        dropout: nn.Dropout,
    ) -> None:
        super().__init__()
        self.embedding, self.recurrent = embedding, recurrent
        self.readout, self.dropout = readout, dropout

    def forward(
        self, tokens: Int[Tensor, "time batch"], state: Any = None
    ) -> tuple[Float[Tensor, "time batch vocabulary"], Any]:
        """Return the logits of each next token, [T, B, V], and the state after the last step."""
        h, state = self.recurrent(self.dropout(self.embedding(tokens)), state)
        return self.readout(self.dropout(h)), state


def in_torch(model: LanguageModel) -> TorchLanguageModel:
    """See :meth:`LanguageModel.to_torch`."""
    if not isinstance(model.readout, nn.Linear):
        raise ConfigError(
            "LanguageModel.to_torch: the readout is an adaptive softmax, and not a Linear: use the "
            "model as it is, or write a file of ONNX by to_onnx"
        )
    of = copy.deepcopy(model)  # as a whole: a tied weight stays one
    name = of.recurrent.cell.name + (" with zoneout" if of.recurrent.zoneout else "")
    try:
        recurrent: Any = bptt.convert(of.recurrent, to="torch")
    except ConfigError:
        raise ConfigError(
            f"LanguageModel.to_torch: torch.nn has no {name}: use the model as it is, or "
            "write a file of ONNX by to_onnx"
        ) from None
    readout = cast(nn.Linear, of.readout)
    new = TorchLanguageModel(of.embedding, recurrent, readout, nn.Dropout(of.dropout.p))
    return new.train(model.training)


# ------------------------------------------------------------------------------------ ONNX


class _Flat(nn.Module):
    """The model with each tensor of the state as an argument and a result."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits, after = self.model(tokens, state[0] if len(state) == 1 else state)
        return logits, *([after] if len(state) == 1 else after)


def state_names(model: LanguageModel) -> list[str]:
    """Return what the tensors of the state are called: h, c, and s3, s4... where there are more."""
    states = model.recurrent.cell.states
    return ["h", "c", *(f"s{n}" for n in range(3, states + 1))][:states]


def as_onnx(model: LanguageModel) -> bytes:
    """See :meth:`LanguageModel.to_onnx`."""
    for package in ("onnx", "onnxscript"):
        require(package, "onnx")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > MOST:
        raise ConfigError(
            f"the model has {size / 1e9:.1f} GB of weights, and a file of ONNX holds 2 GB: train a "
            "smaller one"
        )
    names = state_names(model)
    tokens, state = _example(model, steps=2, batch=2)
    T, B = (torch.export.Dim(name, min=1) for name in ("T", "B"))
    on_cpu = copy.deepcopy(model).cpu().eval()
    with _quietly():
        program = torch.onnx.export(
            _Flat(on_cpu),
            (tokens, *state),
            dynamo=True,
            dynamic_shapes=({0: T, 1: B}, tuple({1: B} for _ in state)),
            input_names=["tokens", *(f"{name}_0" for name in names)],
            output_names=["logits", *(f"{name}_n" for name in names)],
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # names of files here, among other things
    written = program.model_proto
    for key, value in about(model).items():
        written.metadata_props.add(key=key, value=value)
    return bytes(written.SerializeToString())


def about(model: LanguageModel) -> dict[str, str]:
    """What a program needs besides the graph, and what a person may want to know."""
    tokenizer, config = model.tokenizer, model.config
    said = {
        "bptt": bptt.__version__,
        **{name: getattr(config, name) for name in ("cell", "layers", "hidden", "reading")},
        "level": tokenizer.level,
        "vocabulary": tokenizer.size,
        "first_token": first_token(model),
        **{name: getattr(tokenizer, name) for name in ("unknown", "start", "end")},
    }
    return {"tokenizer.json": tokenizer.to_json(), "language_model.json": json.dumps(said)}


def _example(model: LanguageModel, *, steps: int, batch: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.tokenizer.size, (steps, batch), generator=generator)
    shape = model.recurrent.num_layers, batch, model.recurrent.hidden_size
    return tokens, [torch.zeros(shape) for _ in state_names(model)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what the exporter says to those who work on it."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def check_onnx(model: LanguageModel, content: bytes, *, steps: int = 64, batch: int = 3) -> float:
    """Compare what a file computes in onnxruntime, token by token and at once, with the model.

    Args:
        model: the model.
        content: the file's.
        steps: the number of tokens T.
        batch: the number of sequences B of the comparison at once; token by token it is one.

    Returns:
        The largest difference of a logit or a state, relative to the largest of its kind.

    Raises:
        BpttError: it is more than ``TOLERANCE``.
        MissingExtraError: onnxruntime is not installed.
    """
    require("onnxruntime", "onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(tokens: Tensor, state: list[Tensor]) -> list[Tensor]:
        given = dict(zip(names, (t.numpy() for t in (tokens, *state)), strict=True))
        return [torch.from_numpy(a) for a in session.run(None, given)]

    of = _Flat(copy.deepcopy(model).cpu().eval())
    with torch.inference_mode():
        tokens, state = _example(model, steps=steps, batch=batch)
        worst = _difference(run(tokens, state), of(tokens, *state))
        one, state = tokens[:, :1], [s[:, :1] for s in state]
        logits, last = [], state
        for token in one.split(1):
            y, *last = run(token, last)
            logits.append(y)
        worst = max(worst, _difference([torch.cat(logits), *last], of(one, *state)))
    if not worst <= TOLERANCE:
        raise BpttError(
            f"the file of ONNX computes other numbers than the model: off by {worst:.1e} of the "
            f"largest, and at most {TOLERANCE} is allowed; nothing was written. Please report it "
            f"with the versions of torch ({torch.__version__}) and onnxruntime "
            f"({onnxruntime.__version__})"
        )
    return worst


def _difference(found: list[Tensor], expected: tuple[Tensor, ...]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, expected, strict=True)
    )
