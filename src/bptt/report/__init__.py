"""Pictures of what was computed elsewhere: nothing here computes, only this loads matplotlib."""

from bptt.report.matrices import draw_plans

__all__ = ["draw_plans"]
