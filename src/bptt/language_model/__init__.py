"""Recurrent language models: train, evaluate, sample."""

from bptt.language_model.config import Config
from bptt.language_model.evaluation import evaluate
from bptt.language_model.model import LanguageModel
from bptt.language_model.run import Run
from bptt.language_model.score import Score
from bptt.language_model.session import resume, start, train
from bptt.language_model.training import Training, Watch

__all__ = [
    "Config",
    "LanguageModel",
    "Run",
    "Score",
    "Training",
    "Watch",
    "evaluate",
    "resume",
    "start",
    "train",
]
