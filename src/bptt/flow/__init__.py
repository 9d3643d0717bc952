"""How far the gradient reaches: all pairs of a loss and an earlier step, and what follows."""

from bptt.flow.flow import GradientFlow, StateFlow
from bptt.flow.following import gradient_flow
from bptt.flow.lags import ByLag, DecayFit, Horizon

__all__ = ["ByLag", "DecayFit", "GradientFlow", "Horizon", "StateFlow", "gradient_flow"]
