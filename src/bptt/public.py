"""The core: the names of ``bptt.__all__``, and where each is defined."""

from bptt import init, losses, memory
from bptt.cells import Cell
from bptt.credit import Adaptive, Credit, Full, Plan, Randomized, Truncated
from bptt.credit.error import estimator_error
from bptt.flow.flow import GradientFlow
from bptt.flow.following import gradient_flow
from bptt.flow.lyapunov import lyapunov_exponents
from bptt.flow.meter import FlowMeter
from bptt.flow.penalty import vanishing_penalty
from bptt.memory import Recompute, Store
from bptt.recurrent import GRU, LSTM, RNN, Recurrent
from bptt.stepwise import Stepwise
from bptt.streams import Stream
from bptt.unrolling import unroll

__all__ = [  # noqa: RUF022  # grouped by part
    # Networks
    "GRU",
    "LSTM",
    "RNN",
    "Recurrent",
    "Cell",
    "Stepwise",
    "Stream",
    # How far back a loss is credited
    "Adaptive",
    "Credit",
    "Full",
    "Plan",
    "Randomized",
    "Truncated",
    "estimator_error",
    "unroll",
    # How far the gradient reaches
    "FlowMeter",
    "GradientFlow",
    "gradient_flow",
    "lyapunov_exponents",
    "vanishing_penalty",
    # What a backward pass keeps
    "Recompute",
    "Store",
    "memory",
    # Initial weights
    "init",
    # The loss of a readout
    "losses",
]
