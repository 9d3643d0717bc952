"""What each option of a training requires of the others."""

from __future__ import annotations

from bptt._src.together import Every, Only, Table, With, Without

TOGETHER: Table = {
    "column": With(("corpus",)),
    "encoding": With(("corpus", "valid")),
    "level": Without("tokenizer"),
    "vocabulary": Every(Without("tokenizer"), Only("level", ("word", "whitespace", "char", "bpe"))),
    "lowercase": Without("tokenizer"),
    "sampling": Only("reading", ("stream",)),
    "valid_fraction": Without("valid"),
    "nonlinearity": Only("cell", ("rnn",)),
    "radius": Only("cell", ("rnn", "rate")),
    "steps": Only("reading", ("stream",)),
    "epoch_start": Only("reading", ("stream",)),
    "momentum": Only("optimizer", ("sgd",)),
    "embedding_rows": Only("optimizer", ("adam", "adamw")),
    "most_rewinds": Only("on_divergence", ("rewind",)),
    "softmax": Every(  # whose tokens are in order of frequency
        Without("tokenizer"), Only("level", ("word", "whitespace", "char"))
    ),
}
"""Options that mean something only together with others; see :mod:`together`."""
