"""The core: the names of ``bptt.__all__``, and where each is defined."""

from bptt import init, losses, memory
from bptt._src.audit.audit import assert_credit, audit
from bptt._src.audit.report import Audit
from bptt._src.convert import convert
from bptt._src.credit.error import estimator_error
from bptt._src.engines.scan import scan
from bptt._src.explain.explain import explain_gradient
from bptt._src.explain.explanation import Explanation
from bptt._src.explain.solving import WeightFit
from bptt._src.flow.flow import GradientFlow
from bptt._src.flow.gradient_flow import gradient_flow
from bptt._src.flow.lyapunov import lyapunov_exponents
from bptt._src.flow.meter import FlowMeter
from bptt._src.flow.penalty import vanishing_penalty
from bptt._src.fuse.fused import Fused, fuse
from bptt._src.lru import LRU
from bptt._src.module_check.check_module import check_module
from bptt._src.recurrent import GRU, LSTM, RNN, Recurrent
from bptt._src.safe_globals import register
from bptt._src.unroll.stepwise import Stepwise
from bptt._src.unroll.stream import Stream
from bptt._src.unroll.unroll import unroll
from bptt.cells import Cell
from bptt.credit import Adaptive, Credit, Full, Online, Plan, Randomized, Truncated
from bptt.memory import Recompute, Store

register()

__all__ = [  # noqa: RUF022  # grouped by part
    # Networks
    "GRU",
    "LRU",
    "LSTM",
    "RNN",
    "Recurrent",
    "Cell",
    "Stepwise",
    "Stream",
    "Fused",
    "fuse",
    "convert",
    "scan",
    # How far back a loss is credited
    "Adaptive",
    "Credit",
    "Full",
    "Online",
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
    # What credit any training code computes
    "Audit",
    "assert_credit",
    "audit",
    # Which weights a computed gradient has
    "Explanation",
    "WeightFit",
    "explain_gradient",
    # Whether a module computes what it should
    "check_module",
    # What a backward pass keeps
    "Recompute",
    "Store",
    "memory",
    # Initial weights
    "init",
    # The loss of a readout
    "losses",
]
