"""Training loops in many styles, each in a right and a wrong version.

The mistakes are those that people make. Apart from the loops that use a freed graph, every wrong
version runs to its end without a word.
"""

from audit.gallery import (
    cells,
    lightning_style,
    plain,
    reinforcement,
    seq2seq,
    streams,
    truncated,
)
from audit.gallery.registry import LOOPS, Loop, Training

__all__ = [
    "LOOPS",
    "Loop",
    "Training",
    "cells",
    "lightning_style",
    "plain",
    "reinforcement",
    "seq2seq",
    "streams",
    "truncated",
]
