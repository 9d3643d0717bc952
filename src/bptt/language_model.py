"""Recurrent language models: train, evaluate, sample."""

from bptt._src.language_model.config import Config
from bptt._src.language_model.evaluation import evaluate
from bptt._src.language_model.flow import flow_of
from bptt._src.language_model.model import LanguageModel
from bptt._src.language_model.run import Run
from bptt._src.language_model.score import Score
from bptt._src.language_model.session import resume, start, train
from bptt._src.language_model.training import Training
from bptt._src.language_model.watch import Watch

__all__ = [
    "Config",
    "LanguageModel",
    "Run",
    "Score",
    "Training",
    "Watch",
    "evaluate",
    "flow_of",
    "resume",
    "start",
    "train",
]
