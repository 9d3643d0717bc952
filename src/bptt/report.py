"""Figures of what was computed elsewhere; drawing needs matplotlib, ``bptt[plot]``."""

from bptt._src.report.matrices import draw_plans

__all__ = ["draw_plans"]
