"""How far the gradient reaches: all pairs of a loss and an earlier step, and what follows."""

from bptt._src.engines.norm_hooks import by_layer, listen
from bptt._src.flow.advice import Advice, advise
from bptt._src.flow.alarm import Probe, dies
from bptt._src.flow.dynamics import Dynamics, measure
from bptt._src.flow.flow import GradientFlow, StateFlow
from bptt._src.flow.gradient_flow import gradient_flow
from bptt._src.flow.lags import ByLag, DecayFit, Horizon, find_horizon, fit_decay
from bptt._src.flow.meter import LISTENS_EVERY, Reading
from bptt._src.flow.truncation import suggest, tail
from bptt._src.flow.verdict import Verdict, judge

__all__ = [
    "LISTENS_EVERY",
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
    "by_layer",
    "dies",
    "find_horizon",
    "fit_decay",
    "gradient_flow",
    "judge",
    "listen",
    "measure",
    "suggest",
    "tail",
]
