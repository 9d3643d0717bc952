"""Train recurrent networks through time.

The public names of the package are the ones imported here; everything else is private.
"""

from bptt.credit import Credit, Full, Plan, Randomized, Truncated
from bptt.language_model import LanguageModel
from bptt.recurrent import GRU, LSTM, RNN

__version__ = "0.1.0.dev0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Credit",
    "Full",
    "LanguageModel",
    "Plan",
    "Randomized",
    "Truncated",
]
