"""Comparison of credits: the same task, weights and batches for each of them."""

from bptt._src.comparison.compare import Watch, compare
from bptt._src.comparison.result import Comparison, CreditResult, Figures, Trial
from bptt._src.comparison.table import print_comparison

__all__ = [
    "Comparison",
    "CreditResult",
    "Figures",
    "Trial",
    "Watch",
    "compare",
    "print_comparison",
]
