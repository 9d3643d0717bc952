"""Comparison of credits: the same task, weights and batches for each of them."""

from bptt.comparison.compare import Watch, compare
from bptt.comparison.result import Comparison, CreditResult, Figures, Trial
from bptt.comparison.table import print_comparison

__all__ = [
    "Comparison",
    "CreditResult",
    "Figures",
    "Trial",
    "Watch",
    "compare",
    "print_comparison",
]
