"""Where training that diverged went wrong: what was the first not to be finite, and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bptt.credit import Credit
from bptt.data.readers import IGNORED
from bptt.kernels.reports import Report, by_layer, listen
from bptt.language_model.model import LanguageModel
from bptt.losses import linear_cross_entropy
from bptt.memory import Memory
from bptt.streams import Stream

NORMS_KEPT = 5  # of the updates before the one that diverged


def first_not_finite(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    stream: Stream,
    loss: float,
    how: dict[str, Any] | None = None,
) -> str:
    """Look at a batch again that gave a loss or a gradient which is not finite.

    The weights come first, then the way forwards, step by step and layer by layer, then the
    gradients that the backward pass has left in the parameters, from the readout down, and the
    state's gradient. Forwards it is done without dropout. Where all is finite, the largest number
    on the way is named.

    Args:
        model: whose update was not made; the parameters' gradients are those of the batch.
        inputs: of the batch, token numbers, [T, B].
        targets: the token after each of them, [T, B].
        stream: where the streams stood before the batch.
        loss: of the batch.
        how: how its gradient went back: ``credit``, ``memory`` and ``reach_back``, as for
            :class:`bptt.language_model.step.Step`.

    Returns:
        What it was, and where; for use within a sentence.
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
    """The gradient's norms before an update, oldest first; for use within a sentence."""
    if not norms:
        return "it was the first update"
    return f"the gradient's norms before were {', '.join(f'{n:.3g}' for n in norms)}"


# ------------------------------------------------------------------------------- forwards


@torch.no_grad()
def _on_the_way(model: LanguageModel, inputs: Tensor, targets: Tensor, stream: Stream) -> str:
    """Run the batch step by step, and stop at the first number that is not finite."""
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
        f"looked at again without dropout, all was finite; the largest was {name}, at step {t} of "
        f"{T}, up to {size:.3g}"
    )


def _seen(
    model: LanguageModel, state: Any, h: Tensor, targets: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """What there is after a step, in the order in which it is computed."""
    layers = model.config.layers
    hidden, *cell = (state,) if isinstance(state, Tensor) else state
    for layer in range(layers):
        for kind, s in (("cell", cell[0] if cell else None), ("hidden", hidden)):
            if s is not None:
                yield f"the {kind} state of layer {layer + 1} of {layers}", s[layer]
    if targets is not None:
        logits = model.readout(h)
        yield "the logits", logits
        yield "the loss", cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


# ------------------------------------------------------------------------------ backwards


def _on_the_way_back(model: LanguageModel) -> str:
    """Look at the gradients that are there, from the readout, where they come from, down."""
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
        f"each number of the gradient is finite; the largest was that of {_part(model, name)} "
        f"({name}), up to {size:.3g}"
    )


def _heard(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    stream: Stream,
    *,
    credit: Credit | None = None,
    memory: Memory | None = None,
    reach_back: int = 0,
) -> list[Report]:
    """Run the batch again, forwards and backwards, and listen; no ``grad`` is touched."""

    def run(tokens: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        within = None if reach_back else credit
        return model.hidden(tokens, state, credit=within, memory=memory, resets=resets)

    readout = model.readout
    with torch.random.fork_rng([]), listen() as heard:
        hidden, _ = stream.through(run, inputs, reach_back)
        loss = linear_cross_entropy(
            hidden, readout.weight, readout.bias, targets, ignore_index=IGNORED
        )
        torch.autograd.grad(loss, list(model.recurrent.parameters()))
    return heard


def _states_on_the_way_back(heard: list[Report]) -> str:
    """Say how the state's gradient grew, in the layer where it is the first not to be finite.

    Where it is finite in all, that is the layer where it grew most.
    """
    grew: list[tuple[float, int, int, float, float]] = []
    norms_of = by_layer(heard)
    for layer in reversed(range(len(norms_of))):  # from the readout down
        norms = norms_of[layer][:-1]  # nothing is handed down at the last step
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
    """The part of the model that a parameter is of, in words."""
    found = re.search(r"_l(\d+)$", parameter)
    if found:
        return f"layer {int(found[1]) + 1} of {model.config.layers}"
    return "the " + parameter.split(".")[0]
