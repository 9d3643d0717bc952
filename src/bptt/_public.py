"""The core: the names of ``bptt.__all__``, and where each is defined.

Networks, credit and memory are loaded with it; the tools that look at a network are when they are
asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bptt import init, losses, memory
from bptt._src.convert import convert
from bptt._src.engines.scan import scan
from bptt._src.lru import LRU
from bptt._src.recurrent import GRU, LSTM, RNN, Recurrent
from bptt._src.safe_globals import register
from bptt._src.unroll.stepwise import Stepwise
from bptt._src.unroll.stream import Stream
from bptt._src.unroll.unroll import unroll
from bptt.cells import Cell
from bptt.credit import Adaptive, Credit, Full, Online, Plan, Randomized, Truncated
from bptt.memory import Recompute, Store

if not TYPE_CHECKING:
    _WHEN_ASKED_FOR = {
        "Audit": "audit.report",
        "Explanation": "explain.explanation",
        "FlowMeter": "flow.meter",
        "Fused": "fuse.fused",
        "GradientFlow": "flow.flow",
        "WeightFit": "explain.solving",
        "assert_credit": "audit.audit",
        "audit": "audit.audit",
        "check_module": "module_check.check_module",
        "estimator_error": "credit.error",
        "explain_gradient": "explain.explain",
        "fuse": "fuse.fused",
        "gradient_flow": "flow.gradient_flow",
        "lyapunov_exponents": "flow.lyapunov",
        "vanishing_penalty": "flow.penalty",
    }

    def __getattr__(name: str) -> Any:
        if name not in _WHEN_ASKED_FOR:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"bptt._src.{_WHEN_ASKED_FOR[name]}"), name)
        globals()[name] = found
        return found

else:  # mkdocstrings, too, finds them here, but not under `if TYPE_CHECKING`
    from bptt._src.audit.audit import assert_credit, audit
    from bptt._src.audit.report import Audit
    from bptt._src.credit.error import estimator_error
    from bptt._src.explain.explain import explain_gradient
    from bptt._src.explain.explanation import Explanation
    from bptt._src.explain.solving import WeightFit
    from bptt._src.flow.flow import GradientFlow
    from bptt._src.flow.gradient_flow import gradient_flow
    from bptt._src.flow.lyapunov import lyapunov_exponents
    from bptt._src.flow.meter import FlowMeter
    from bptt._src.flow.penalty import vanishing_penalty
    from bptt._src.fuse.fused import Fused, fuse
    from bptt._src.module_check.check_module import check_module


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
