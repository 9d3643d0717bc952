"""Comparison of credits: the same task, weights and batches for each of them."""

from bptt._src.comparison.compare import ComparisonWatch, compare
from bptt._src.comparison.result import Comparison, CreditResult, Figures, Trial
from bptt._src.comparison.table import print_comparison

__all__ = [
    "Comparison",
    "ComparisonWatch",
    "CreditResult",
    "Figures",
    "Trial",
    "compare",
    "print_comparison",
]
