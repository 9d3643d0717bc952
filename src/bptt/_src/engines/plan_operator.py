"""A credit's plan as an operator of torch: a graph asks for it with each length and batch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from bptt._src.credit.plan import Block, Plan, check_directions, plan_for
from bptt._src.engines.define import operator, shapes_of
from bptt._src.engines.recording import credit_of, name_of_credit
from bptt._src.engines.windows import windows_of


class Crossing(NamedTuple):
    """What happens to the state and its gradient between the steps of each layer."""

    carry: Tensor | None = None
    """Factors of the state's gradient, [T, B]."""
    resets: Tensor | None = None
    """Where the state is set to zero, bool [T, B]."""
    blocks: Tensor | None = None
    """Blocks of losses with a window each, int64 [T, 3]; None where there can be none."""


_PLAN = "(str credit, SymInt steps, SymInt batch, str where, bool both) -> (Tensor, Tensor)"


# Two calls need not give the same plan, and none of them may be left out.
@operator("plan", _PLAN, tags=(torch.Tag.nondeterministic_seeded,))
def _plan(credit: str, steps: int, batch: int, where: str, both: bool) -> tuple[Tensor, Tensor]:
    """Return the factors of a credit's plan, float64 [T, B], and its blocks, int64 [T, 3]."""
    found = plan_for(credit_of(credit), steps, batch, where=where)
    check_directions(found, credit, both, where)
    carry = torch.from_numpy(found.carry)
    carry = (carry.unsqueeze(1) if carry.dim() == 1 else carry).expand(steps, batch)
    return carry.clone(memory_format=torch.contiguous_format), _table(found)


@shapes_of("plan")
def _(credit: str, steps: int, batch: int, where: str, both: bool) -> tuple[Tensor, Tensor]:
    carry = torch.empty(steps, batch, dtype=torch.float64, device="cpu")
    return carry, torch.empty(steps, 3, dtype=torch.int64, device="cpu")


_NO_BLOCK = (-1, -1, -1)


def _table(plan: Plan) -> Tensor:
    """The blocks, of which there are no more than steps, and rows of -1, [T, 3]."""
    rows = [*plan.blocks, *[_NO_BLOCK] * (plan.steps - len(plan.blocks))]
    return torch.tensor(rows, dtype=torch.int64)


def windows_in(blocks: Tensor | None, sizes: tuple[int, ...], device: torch.device) -> Any:
    """The windows of a table of blocks; None where there are none."""
    rows = [] if blocks is None else [Block(*row) for row in blocks.tolist() if row[0] >= 0]
    return windows_of(tuple(rows), sizes).to(device) if rows else None


def plan_of(
    credit: Any, steps: int, batch: int, generator: Any, *, where: str, both: bool
) -> tuple[Tensor, Tensor | None]:
    """Ask a credit for its plan as one operation.

    Args:
        credit: the credit, its spelling, or a plan.
        steps: T.
        batch: B.
        generator: must be None: a graph draws from torch's own.
        where: what messages name.
        both: whether it is for two directions.

    Returns:
        The factors of the state's gradient, [T, B], and a table of the blocks, [T, 3]; None where
        there can be none.

    Raises:
        RuntimeError: there is a generator.
    """
    if generator is not None:
        raise RuntimeError(
            f"{where}: a recorded graph, as torch.compile's, draws from torch's own generator: "
            "leave generator out, or give what it draws as carry"
        )
    found = torch.ops.bptt.plan.default(name_of_credit(credit), steps, batch, where, both)
    return found[0], None if both else found[1]


_BY_WINDOWS = "(Tensor x, Tensor like, Tensor blocks, Tensor? sizes) -> Tensor"


@operator("by_windows", _BY_WINDOWS)
def _by_windows(x: Tensor, like: Tensor, blocks: Tensor, sizes: Tensor | None) -> Tensor:
    """Lay rows out by windows."""
    of = tuple(sizes.tolist()) if sizes is not None else (x.shape[1],) * x.shape[0]
    windows, rows = windows_in(blocks, of, x.device), x.flatten(0, -2)
    return rows.clone() if windows is None else rows.index_select(0, windows.rows)


@shapes_of("by_windows")
def _(x: Tensor, like: Tensor, blocks: Tensor, sizes: Tensor | None) -> Tensor:
    return torch.empty_like(like)


def by_windows(x: Tensor, like: Tensor, crossing: Crossing, sizes: Tensor | None) -> Tensor:
    """Lay out rows by the windows of the plan's blocks, as ``like`` is."""
    run = torch.ops.bptt.by_windows.default
    return cast(Tensor, run(x, like.detach(), crossing.blocks, sizes))


_OWN_ROWS = "(Tensor blocks, Tensor? sizes, SymInt rows) -> Tensor"


@operator("own_rows", _OWN_ROWS)
def _own_rows(blocks: Tensor, sizes: Tensor | None, rows: int) -> Tensor:
    """Return for each row its copy in the window of its own loss, int64 [N]."""
    steps = len(blocks)
    of = tuple(sizes.tolist()) if sizes is not None else (rows // steps,) * steps
    windows = windows_in(blocks, of, blocks.device)
    return torch.arange(rows) if windows is None else windows.own.clone()


@shapes_of("own_rows")
def _(blocks: Tensor, sizes: Tensor | None, rows: int) -> Tensor:
    return blocks.new_empty(rows)


def own_rows(x: Tensor, crossing: Crossing, sizes: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Lay out what is laid out by windows as the rows [T, B, ...], or [N, ...] where packed."""
    index = torch.ops.bptt.own_rows.default(crossing.blocks, sizes, math.prod(shape))
    return x.index_select(0, index.to(x.device)).view(*shape, x.shape[1])
