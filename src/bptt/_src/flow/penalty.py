"""A loss term that asks each step to keep the gradient's length: against vanishing gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bptt._src.flow.given import Given
from bptt._src.flow.piece import Piece
from bptt._src.flow.trajectory import Trajectory, following, reset_rows
from bptt._src.layout import join


def vanishing_penalty(
    module: Any,
    inputs: Any,
    loss_fn: Callable[[Any], Tensor],
    state: Any = None,
    *,
    resets: Tensor | None = None,
    state_batch_dim: int | None = None,
    batch_first: bool | None = None,
) -> Tensor:
    """Compute Ω, which is 0 where every step keeps the length of the gradient that crosses it.

    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, arXiv:1211.5063, equation 9:

        Ω = Σ_k Ω_k = Σ_k ( ‖(∂E/∂h_{k+1}) ∂h_{k+1}/∂h_k‖ / ‖∂E/∂h_{k+1}‖ - 1 )²

    Its own gradient is what they take: that of the immediate dependence, ∂⁺Ω/∂θ. The states
    h_k, the inputs and the gradients ∂E/∂h_{k+1} count as constants; only the step between two
    states, h_{k+1} = f(h_k, x_{k+1}; θ), depends on the parameters. So it costs a second
    derivative of single steps and nothing over time. With h_{k+1} = φ(a_{k+1}), as here, that is
    through W_hh and through φ'(a_{k+1}), where a depends on all of the layer's parameters; their
    network's state is a, so that they have W_hh alone.

    Ω is summed over the steps k, and averaged over the sequences: to each sequence's sum belongs
    its own E. Steps over which no gradient flows, as after the last loss, have no Ω_k. In a stack
    each layer has its own, and h is all of its state: for an LSTM h and c together. Cells with
    gates need no help to keep a gradient, but the definition holds for any step. Of a module that
    is neither bptt's nor torch.nn's, ∂E/∂h_k is taken with respect to the state as it enters step
    k + 1, without what comes through the output of step k. There is no dropout between layers,
    zoneout is its mean, and any other module is run in evaluation mode; it is left as it was.

    Args:
        module: what :func:`bptt.unroll` takes.
        inputs: [T, B, ...], or a pytree of such.
        loss_fn: ``outputs -> scalar``, E, a sum or mean over the sequences.
        state: the initial state; None where the module knows how to begin. Of its layers' steps
            the one that starts from it counts only if it is given.
        resets: [T], or [T, B] ([B, T] where the module is ``batch_first``) bool: the state is set
            to zero before step t where it is true. No gradient crosses there, so that step has no
            Ω_k.
        state_batch_dim: as for :func:`bptt.unroll`.
        batch_first: likewise.

    Returns:
        Ω, a scalar; add it to the loss, multiplied by something (they take 0.5 to 4).

    Raises:
        TypeError: the module does not return outputs and a state whose tensors can be seen.
        ValueError: the module is bidirectional, or the inputs are packed, or the loss is no scalar
            that depends on the outputs, or no gradient goes through the state.

    >>> import torch, bptt
    >>> rnn, x, target = bptt.RNN(3, 16), torch.randn(20, 4, 3), torch.randn(4, 16)
    >>> loss_fn = lambda y: (y[-1] - target).square().mean()
    >>> y, _ = rnn(x)
    >>> loss = loss_fn(y) + 0.5 * bptt.vanishing_penalty(rnn, x, loss_fn)
    >>> loss.backward()
    """
    given = Given.of(
        "vanishing_penalty",
        module,
        inputs,
        state,
        resets=resets,
        state_batch_dim=state_batch_dim,
        batch_first=batch_first,
    )
    with following(given) as layers:
        total = layers[0].after.new_zeros(())
        for layer, d in zip(layers, _gradients(given, layers, loss_fn), strict=True):
            t = layer.first if state is not None else 1
            for piece in layer.pieces(first=t):
                end = t + len(piece.before) // layer.batch
                total = total + _omega(piece, d[t:end].flatten(0, 1)) / layer.batch
                t = end
    return total


def _gradients(
    given: Given, layers: tuple[Trajectory, ...], loss_fn: Callable[[Any], Tensor]
) -> list[Tensor]:
    """∂E/∂state_t of each layer, [T, B, n]; zero where the step started anew."""
    with torch.enable_grad():
        if given.ours is None:
            found = [_gradients_of_steps(given, layers[0], loss_fn)]
        else:
            found = _gradients_of_layers(given, layers, loss_fn)
    if given.resets is None:
        return found
    resets = given.resets.view(*given.resets.shape, *(1,) * (3 - given.resets.dim()))
    return [d.masked_fill(resets.to(d.device), 0) for d in found]


def _gradients_of_layers(
    given: Given, layers: tuple[Trajectory, ...], loss_fn: Callable[[Any], Tensor]
) -> list[Tensor]:
    """By later steps, the layers above and the output."""
    x, states = layers[0].inputs, []
    for layer in layers:
        rows, after = layer.before[0].detach().requires_grad_(), []
        for t, x_t in enumerate(x):
            rows = layer.function(t)(x_t, reset_rows(given.resets, t, rows))
            after.append(rows)
        states.append(after)
        width = layer.outputs.shape[2]
        x = [rows[:, :width] for rows in after]
    y = torch.stack(x)
    if given.layout.batch is None:
        y = y.squeeze(1)
    elif given.layout.time:
        y = y.transpose(0, 1)
    flat = [rows for after in states for rows in after]
    found = torch.autograd.grad(_loss(loss_fn, y), flat, materialize_grads=True)
    return list(torch.stack(found).unflatten(0, (len(layers), -1)))


def _gradients_of_steps(
    given: Given, layer: Trajectory, loss_fn: Callable[[Any], Tensor]
) -> Tensor:
    """With respect to the state as it enters the step after t.

    How the output of step t depends on the state that it leaves is not known of a foreign module.
    """
    assert layer.run is not None
    rows, outputs, after = layer.before[0], [], []
    for t, x_t in enumerate(layer.inputs):
        y, rows = layer.run(t, x_t, reset_rows(given.resets, t, rows))
        rows = rows if rows.requires_grad else rows.detach().requires_grad_()
        outputs.append(y)
        after.append(rows)
    loss = _loss(loss_fn, join(outputs, given.layout.time))
    found = torch.autograd.grad(loss, after, materialize_grads=True)
    return torch.stack(found)


def _loss(loss_fn: Callable[[Any], Tensor], y: Any) -> Tensor:
    loss = loss_fn(y)
    if not isinstance(loss, Tensor):
        raise ValueError(
            "vanishing_penalty: expected loss_fn to give a scalar tensor, got "
            f"{type(loss).__name__}"
        )
    if loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            "vanishing_penalty: expected loss_fn to give a scalar that depends on the outputs, got "
            + (f"shape {tuple(loss.shape)}" if loss.numel() != 1 else "one that does not")
            + "; it is the loss of the whole sequence, a sum or mean over steps and sequences"
        )
    return loss


def _omega(piece: Piece, d: Tensor) -> Tensor:
    """Σ Ω_k over the rows of a piece, for the gradients d = ∂E/∂h_{k+1}, [N, n]."""
    with torch.enable_grad():
        before = piece.before.detach().requires_grad_()
        (crossed,) = torch.autograd.grad(
            piece.step(before), before, d, create_graph=True, materialize_grads=True
        )
    length = d.norm(dim=1)
    there = length > 0
    kept = crossed[there].norm(dim=1) / length[there]
    omega: Tensor = (kept - 1).square().sum()
    return omega
