"""How far back a loss is credited: plans, and the credits that make them."""

from bptt._src.credit.adaptive import Adaptive
from bptt._src.credit.credit import Credit, Probe
from bptt._src.credit.decay import Decay, measure_decay
from bptt._src.credit.error import EstimatorError, GradientError
from bptt._src.credit.full import Full
from bptt._src.credit.online import Online, OnlineState
from bptt._src.credit.plan import Block, Plan
from bptt._src.credit.randomized import Randomized
from bptt._src.credit.spelling import as_credit, is_own, parse
from bptt._src.credit.truncated import Truncated

__all__ = [
    "Adaptive",
    "Block",
    "Credit",
    "Decay",
    "EstimatorError",
    "Full",
    "GradientError",
    "Online",
    "OnlineState",
    "Plan",
    "Probe",
    "Randomized",
    "Truncated",
    "as_credit",
    "is_own",
    "measure_decay",
    "parse",
]
