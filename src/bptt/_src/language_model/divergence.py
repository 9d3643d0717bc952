"""Diagnosis of a training that diverged: the first value that is not finite."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt import Stream
from bptt._src.data.readers import IGNORED
from bptt._src.language_model.model import LanguageModel
from bptt._src.language_model.step import loss_of
from bptt.flow import by_layer, listen

NORMS_KEPT = 5  # norms of the updates before the one that diverged


def first_not_finite(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    stream: Stream,
    loss: float,
    how: dict[str, Any] | None = None,
) -> str:
    """Run a batch again whose loss or gradient was not finite, and find where it began.

    The weights are checked first, then the forward pass, step by step and layer by layer, then
    the gradients that the backward pass has left in the parameters, from the readout down, and the
    state's gradient. The forward pass runs without dropout. If everything is finite, the largest
    number on the way is named.

    Args:
        model: the model, before the failed update; its parameters hold the batch's gradients.
        inputs: token numbers of the batch, [T, B].
        targets: the token after each input, [T, B].
        stream: the state of the streams before the batch.
        loss: the batch's loss.
        how: how loss and gradient were computed: ``credit``, ``memory``, ``reach_back`` and
            ``bf16``, as for :func:`language_model.step.loss_of`.

    Returns:
        What was not finite and where, as a part of a sentence.
    """
    weights = dict(model.named_parameters())
    bad = _first_bad(weights.items())
    if bad is not None:
        return f"first not finite: the weights of {_part(model, bad)} ({bad}), by the update before"
    if math.isfinite(loss):
        heard = _heard(model, inputs, targets, stream, **(how or {}))
        return _on_the_way_back(model) + _states_on_the_way_back(heard)
    return _on_the_way(model, inputs, targets, stream)


def first_bad_tensor(tensors: dict[str, Tensor]) -> str | None:
    """Name the first tensor of a checkpoint that holds a number which is not finite."""
    return _first_bad(tensors.items())


def norms_in_words(norms: list[float]) -> str:
    """The gradient's norms before an update, oldest first, as a part of a sentence."""
    if not norms:
        return "it was the first update"
    return f"the gradient's norms before were {', '.join(f'{n:.3g}' for n in norms)}"


# ------------------------------------------------------------------------------- forwards


@torch.no_grad()
def _on_the_way(model: LanguageModel, inputs: Tensor, targets: Tensor, stream: Stream) -> str:
    """Run the batch step by step up to the first number that is not finite."""
    tokens = inputs if stream.past is None else torch.cat([stream.past, inputs])
    T, before = len(tokens), len(tokens) - len(inputs)
    largest = (-1.0, "nothing", 0)
    was_training = model.training
    model.eval()
    try:
        state: Any = stream.state if stream.past is None else stream.before
        for t in range(T):
            h, state = model.hidden(tokens[t : t + 1], state)
            for name, x in _seen(model, state, h[0], targets[t - before] if t >= before else None):
                if not bool(x.isfinite().all()):
                    size, other, at = largest
                    return (
                        f"first not finite: {name}, at step {t + 1} of {T}; the largest before it "
                        f"was {other}, at step {at}, up to {size:.3g}"
                    )
                largest = max(largest, (float(x.abs().max()), name, t + 1))
    finally:
        model.train(was_training)
    size, name, t = largest
    return (
        f"without dropout everything was finite; the largest was {name}, at step {t} of "
        f"{T}, up to {size:.3g}"
    )


def _seen(
    model: LanguageModel, state: Any, h: Tensor, targets: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the results of a step in the order in which they are computed."""
    layers = model.config.layers
    hidden, *cell = (state,) if isinstance(state, Tensor) else state
    for layer in range(layers):
        for kind, s in (*(("cell", c) for c in cell), ("hidden", hidden)):
            yield f"the {kind} state of layer {layer + 1} of {layers}", s[layer]
    if targets is not None:
        logits = model.readout(h)
        yield "the logits", logits
        yield "the loss", cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


# ------------------------------------------------------------------------------ backwards


def _on_the_way_back(model: LanguageModel) -> str:
    """Look through the parameters' gradients in the order of the backward pass."""
    named = [
        (name, p.grad.coalesce().values() if p.grad.is_sparse else p.grad)
        for name, p in reversed(list(model.named_parameters()))
        if p.grad is not None
    ]
    bad = _first_bad(named)
    if bad is not None:
        return f"first not finite: the gradient of {_part(model, bad)} ({bad}), on the way back"
    size, name = max((float(g.abs().max()), name) for name, g in named)
    return (
        f"the whole gradient is finite; its largest entry is in that of {_part(model, name)} "
        f"({name}), up to {size:.3g}"
    )


def _heard(
    model: LanguageModel, inputs: Tensor, targets: Tensor, stream: Stream, **how: Any
) -> list[Any]:
    """Run the batch forward and backward and record the norms; no ``grad`` is changed."""
    with torch.random.fork_rng([]), listen() as heard:
        loss, _ = loss_of(model, inputs, targets, stream, **how)
        torch.autograd.grad(loss, list(model.recurrent.parameters()))
    return heard


def _states_on_the_way_back(heard: list[Any]) -> str:
    """Describe the growth of the state's gradient in the layer that is first not to be finite.

    If all layers are finite, describe the one where it grew most.
    """
    grew: list[tuple[float, int, int, float, float]] = []
    norms_of = by_layer(heard)
    for layer in reversed(range(len(norms_of))):  # from the readout down
        norms = norms_of[layer][:-1]  # the last step receives no gradient from a later one
        if not norms:
            continue
        bad = [t for t, n in enumerate(norms) if not math.isfinite(n)]
        worst = bad[-1] if bad else max(range(len(norms)), key=norms.__getitem__)
        by = math.inf if bad else norms[worst] / (norms[-1] or 1)
        grew.append((by, layer, worst, norms[worst], norms[-1]))
        if bad:
            break
    if not grew:
        return ""
    _, layer, t, size, first = max(grew, key=itemgetter(0))
    return (
        f"; the state's gradient in layer {layer + 1} of {len(norms_of)} was {first:.3g} at step "
        f"{len(norms_of[layer]) - 1} and {size:.3g} at step {t + 1}, further back"
    )


def _first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    for name, x in named:
        if x.is_floating_point() and not bool(x.detach().isfinite().all()):
            return name
    return None


def _part(model: LanguageModel, parameter: str) -> str:
    """The part of the model that a parameter belongs to, in words."""
    found = re.search(r"_l(\d+)$", parameter)
    if found:
        return f"layer {int(found[1]) + 1} of {model.config.layers}"
    return "the " + parameter.split(".")[0]
