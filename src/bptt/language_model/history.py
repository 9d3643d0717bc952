"""What an update needs of the steps before its window, where losses reach back beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.language_model.model import LanguageModel
from bptt.nests import map_tensors


@dataclass(frozen=True)
class History:
    """Where a stream stands between two updates.

    The gradient of a window's losses through the steps before it has to be that of the parameters
    as they are now; the graph of the update before belongs to other ones. So those steps are run
    again, from the state that was stored in front of them.
    """

    state: Any = None
    """The state before the ``past``; None at the beginning of a stream."""
    past: Tensor | None = None
    """The tokens that are run again, [P, B]; None where there are none."""

    def run(
        self, model: LanguageModel, tokens: Tensor, *, length: int, **how: Any
    ) -> tuple[Tensor, History]:
        """Run the past again and go on through a window.

        Args:
            model: as it is now.
            tokens: the window, [T, B].
            length: how many steps the next update will run again.
            how: ``credit``, ``memory`` and more of :meth:`LanguageModel.hidden`; where there is
                a past, the window's losses are credited to all of it.

        Returns:
            The logits of the window, [T, B, V], and where the stream stands after it.
        """
        if not length:
            h, state = model.hidden(tokens, self.state, **how)
            return model.readout(h), History(_detached(state))
        how = {**how, "credit": None}
        both = tokens if self.past is None else torch.cat([self.past, tokens])
        keep = min(length, len(both))
        state, hidden = self.state, []
        if len(both) > keep:
            h, state = model.hidden(both[:-keep], state, **how)
            hidden.append(h)
        after = History(_detached(state), both[-keep:])
        h, _ = model.hidden(both[-keep:], state, **how)
        h = torch.cat([*hidden, h])[len(both) - len(tokens) :]
        return model.readout(h), after


def _detached(state: Any) -> Any:
    return map_tensors(torch.Tensor.detach, state)
