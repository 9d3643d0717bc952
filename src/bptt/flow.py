"""How far the gradient reaches: all pairs of a loss and an earlier step, and what follows."""

from bptt._src.flow.advice import Advice, advise
from bptt._src.flow.alarm import Probe
from bptt._src.flow.dynamics import Dynamics, measure
from bptt._src.flow.flow import GradientFlow, StateFlow
from bptt._src.flow.gradient_flow import gradient_flow
from bptt._src.flow.lags import ByLag, DecayFit, Horizon, find_horizon, fit_decay
from bptt._src.flow.meter import Reading
from bptt._src.flow.truncation import suggest
from bptt._src.flow.verdict import Verdict, judge

__all__ = [
    "Advice",
    "ByLag",
    "DecayFit",
    "Dynamics",
    "GradientFlow",
    "Horizon",
    "Probe",
    "Reading",
    "StateFlow",
    "Verdict",
    "advise",
    "find_horizon",
    "fit_decay",
    "gradient_flow",
    "judge",
    "measure",
    "suggest",
]
