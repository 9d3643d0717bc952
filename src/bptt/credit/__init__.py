"""How far back a loss is credited: plans, and the ways of making them."""

from bptt.credit.credit import Credit
from bptt.credit.full import Full
from bptt.credit.plan import Block, Plan
from bptt.credit.randomized import Randomized
from bptt.credit.truncated import Truncated

__all__ = ["Block", "Credit", "Full", "Plan", "Randomized", "Truncated"]
