"""How far back a loss is credited: plans, and the credits that make them."""

from bptt.credit.adaptive import Adaptive
from bptt.credit.credit import Credit, Probe
from bptt.credit.decay import Decay, measure_decay
from bptt.credit.full import Full
from bptt.credit.plan import Block, Plan
from bptt.credit.randomized import Randomized
from bptt.credit.spelling import as_credit, parse
from bptt.credit.truncated import Truncated

__all__ = [
    "Adaptive",
    "Block",
    "Credit",
    "Decay",
    "Full",
    "Plan",
    "Probe",
    "Randomized",
    "Truncated",
    "as_credit",
    "measure_decay",
    "parse",
]
