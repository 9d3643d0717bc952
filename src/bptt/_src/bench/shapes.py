"""What is measured: the shapes of a layer and of a language model, and how many operations each is.

A product of [M, K] and [K, N] counts as 2·M·K·N operations. A training step makes three products
of each weight matrix: one forward, one for the gradient of what goes in, one for the weight's own.
What is not a matrix product (nonlinearities, softmax, clipping, the update) is not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bptt.errors import ConfigError, spelled

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""The rows of a cell's weights, in multiples of H."""


@dataclass(frozen=True)
class Shape:
    """The shape of a recurrent layer's work.

    >>> Shape.parse("35/20/200/200")
    Shape(steps=35, batch=20, inputs=200, hidden=200)
    """

    steps: int
    batch: int
    inputs: int
    hidden: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read T/B/I/H.

        Raises:
            ConfigError: these are not four whole numbers from 1 on.
        """
        if not re.fullmatch(r"[1-9][0-9]{0,6}(/[1-9][0-9]{0,6}){3}", text, re.ASCII):
            raise ConfigError(
                f"{spelled('shape', text)}: give T/B/I/H (steps, batch, inputs, hidden units), "
                "four whole numbers from 1 on, as 35/20/200/200"
            )
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        """Write T/B/I/H."""
        return f"{self.steps}/{self.batch}/{self.inputs}/{self.hidden}"

    def flop(self, cell: str) -> int:
        """Count the operations of a training step of one layer of a cell."""
        T, B, I, H = self.steps, self.batch, self.inputs, self.hidden  # noqa: E741
        return 3 * 2 * T * B * GATES[cell] * H * (I + H)


SHAPES = tuple(
    Shape.parse(text)
    for text in (
        "35/20/200/200",
        "35/20/650/650",
        "100/32/128/256",
        "20/1/100/100",
        "1000/1/64/64",
        "200/64/64/64",
    )
)


@dataclass(frozen=True)
class ModelShape:
    """A language model, and the windows that it is trained on."""

    cell: str
    layers: int
    vocabulary: int
    hidden: int
    batch: int
    steps: int
    rate: float = 0.1
    """Of plain stochastic gradient descent."""
    clip: float | None = 1.0

    def __str__(self) -> str:
        """Write V/H/B/T."""
        return f"{self.vocabulary}/{self.hidden}/{self.batch}/{self.steps}"

    @property
    def name(self) -> str:
        """The cell, and how many layers where it is not one."""
        return self.cell.upper() + (f" {self.layers} layers" if self.layers > 1 else "")

    def flop(self, steps: int | None = None) -> int:
        """Count the operations of a training step: the layers, and the readout.

        Args:
            steps: of the window, where it is not as long as usual.
        """
        T = self.steps if steps is None else steps
        layer = Shape(T, self.batch, self.hidden, self.hidden).flop(self.cell)
        return self.layers * layer + 3 * 2 * T * self.batch * self.hidden * self.vocabulary


MODELS = (
    ModelShape("rnn", 1, vocabulary=8000, hidden=100, batch=20, steps=35),
    ModelShape("rnn", 1, vocabulary=8000, hidden=100, batch=1, steps=20),
    ModelShape("lstm", 2, vocabulary=10000, hidden=200, batch=20, steps=20),
    ModelShape("lstm", 2, vocabulary=10000, hidden=650, batch=20, steps=35),
)
SEED = ModelShape("rnn", 1, vocabulary=8000, hidden=100, batch=1, steps=25, rate=0.005, clip=None)
"""The job of the textbook's tutorial: one sentence of about 25 words an update, no clipping."""
