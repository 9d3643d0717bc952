"""The update of an embedding whose gradient has rows for a few tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import adam, adamw


class AllRows:
    """Updates the whole embedding, by the optimizer itself.

    Its gradient is laid out in one tensor that is zero again after each update, so that the rows
    of the other tokens are neither set to zero nor read for the norm.
    """

    def __init__(self) -> None:
        self._whole: Tensor | None = None

    def step(self, optimizer: torch.optim.Optimizer, table: Tensor) -> None:
        """Update all parameters.

        Args:
            optimizer: of all parameters.
            table: the embedding's weight, with a coalesced gradient.
        """
        gradient = table.grad
        assert gradient is not None
        if self._whole is None:
            self._whole = torch.zeros_like(table)
        rows = gradient.indices()[0]
        try:
            table.grad = self._whole.index_copy_(0, rows, gradient.values())
            optimizer.step()
        finally:
            self._whole.index_fill_(0, rows, 0)
            table.grad = gradient


class UsedRows:
    """Updates those rows of the embedding that have a gradient, by Adam or AdamW.

    The other rows and their moments stand still: where torch.optim.Adam lets the moments of a row
    without a gradient decay and goes on moving it by them, this leaves it as it is, as
    torch.optim.SparseAdam does. The number of updates in the moments' correction is that of all
    updates. A row that is used has the values that torch's Adam gives it from the same moments.
    """

    def step(self, optimizer: torch.optim.Optimizer, table: Tensor) -> None:
        """Update all parameters.

        Args:
            optimizer: an Adam or AdamW over all parameters.
            table: the embedding's weight, with a gradient, which is dense or coalesced.
        """
        gradient = table.grad
        assert gradient is not None
        table.grad = None
        optimizer.step()
        table.grad = gradient
        if gradient.is_sparse:
            rows, values = gradient.indices()[0], gradient.values()
        else:
            rows, values = torch.arange(len(gradient), device=gradient.device), gradient
        has_gradient = values.any(1)  # it may be zero, as that of a token whose loss is ignored
        self._update(optimizer, table, rows[has_gradient], values[has_gradient])

    def _update(
        self, optimizer: torch.optim.Optimizer, table: Tensor, rows: Tensor, values: Tensor
    ) -> None:
        (group,) = optimizer.param_groups
        state: dict[str, Any] = optimizer.state[table]
        if not state:  # the names and values of torch's
            state["step"] = torch.zeros((), device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        wholes = table, state["exp_avg"], state["exp_avg_sq"]
        weight, first, second = (whole.index_select(0, rows) for whole in wholes)
        is_adamw = isinstance(optimizer, torch.optim.AdamW)
        (adamw.adamw if is_adamw else adam.adam)(
            *([weight], [values], [first], [second], [], [state["step"]]),
            fused=True,
            grad_scale=optimizer.grad_scale,  # type: ignore[attr-defined]
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        for whole, part in zip(wholes, (weight, first, second), strict=True):
            whole.index_copy_(0, rows, part)
