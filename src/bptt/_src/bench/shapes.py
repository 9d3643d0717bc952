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

ACTING = tuple(
    Shape.parse(text)
    for text in ("1/1/64/64", "1/1/650/650", "1/16/64/256", "2/4/100/100", "3/8/128/512")
)
"""Of forward passes of few rows."""


@dataclass(frozen=True)
class ReadoutShape:
    """A readout with its loss."""

    rows: int
    hidden: int
    vocabulary: int

    def __str__(self) -> str:
        """Write V/H/N."""
        return f"{self.vocabulary}/{self.hidden}/{self.rows}"

    @property
    def flop(self) -> int:
        """Count the operations of the loss and its gradients."""
        return 3 * 2 * self.rows * self.hidden * self.vocabulary


READOUTS = (
    ReadoutShape(700, hidden=256, vocabulary=50_000),
    ReadoutShape(700, hidden=256, vocabulary=100_000),
    ReadoutShape(700, hidden=100, vocabulary=8000),
    ReadoutShape(400, hidden=200, vocabulary=10_000),
    ReadoutShape(700, hidden=650, vocabulary=10_000),
)


@dataclass(frozen=True)
class Variant:
    """A layer that not everyone has."""

    cell: str
    shape: Shape
    dtype: str = "float32"
    """Of its parameters and inputs."""
    projection: int = 0
    """``proj_size``; 0: none."""

    @property
    def name(self) -> str:
        """The cell, and what is particular; that its row is of bfloat16 is said elsewhere."""
        projected = f" proj {self.projection}" if self.projection else ""
        dtypes = {"float32": "", "float16": " weights float16", "bfloat16": " weights"}
        return self.cell.upper() + projected + dtypes[self.dtype]

    @property
    def flop(self) -> int:
        """Count the operations of a training step."""
        T, B, H, P = self.shape.steps, self.shape.batch, self.shape.hidden, self.projection
        if not P:
            return self.shape.flop(self.cell)
        return 3 * 2 * T * B * H * (GATES[self.cell] * (self.shape.inputs + P) + P)


VARIANTS = (
    Variant("lstm", Shape(35, 20, 200, 200), projection=100),
    Variant("lstm", Shape(100, 32, 128, 512), projection=128),
    *(
        Variant(cell, Shape(35, 20, 200, 200), dtype)
        for dtype in ("float16", "bfloat16")
        for cell in GATES
    ),
)
WRITERS = (
    ModelShape("lstm", 2, vocabulary=10_000, hidden=650, batch=1, steps=50),
    ModelShape("lstm", 1, vocabulary=100, hidden=512, batch=1, steps=50),
    ModelShape("lstm", 1, vocabulary=100, hidden=32, batch=1, steps=50),
)
"""Language models that write so many tokens a time."""
READERS = tuple(
    ModelShape("lstm", 1, vocabulary=100, hidden=512, batch=batch, steps=500) for batch in (1, 20)
)
"""Language models that read a text as so many streams, in windows of so many steps."""
