"""Recurrent language models: training, runs, evaluation, sampling."""
