"""Equations of docstrings become formulas; other blocks stay as they are."""

import pytest

pytest.importorskip("griffe", reason="griffe, of the group docs, is not installed")
convert = pytest.importorskip("latex2mathml.converter").convert
import bptt  # noqa: E402
from tools.equations import to_tex, typeset  # noqa: E402

pytestmark = pytest.mark.site


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("σ(W_ir x_t + b_ir)", "σ(W_{ir} x_{t} + b_{ir})"),
        ("h_{t-1} ⊙ tanh(c_t)", r"h_{t-1} \odot  \tanh(c_{t})"),
        ("Wᵀ δ_{t+1}", r"W^\top  δ_{t+1}"),
        ("log softmax(o_t)", r"\log\, \mathrm{softmax}(o_{t})"),
        ("or W_hr times that", r"\text{or }W_{hr}\text{ times that}"),
        ("∂L/∂logits", r"\partial L/\partial \text{logits}"),
        ("dU", "dU"),
    ],
)
def test_signs_and_names(text, tex):
    assert to_tex(text) == tex


def test_an_equation_a_row_and_its_remark_beside_it():
    text = "One step.\n\n    a = b     c = d\n    e =       f          output gate\n\nMore.\n"
    formula = (
        r"$$\begin{align*} a & = b \\ c & = d \\ e & = f && \quad \text{output gate} \end{align*}$$"
    )
    assert typeset(text) == f"One step.\n\n{formula}\n\nMore.\n"


@pytest.mark.parametrize(
    "text",
    [
        "Files.\n\n    config.json     the options\n    text.json       its origin\n",
        "Return it.\n\nArgs:\n    n: how many, n = 1 for one.\n",
        ">>> a = 1\n>>> def f():\n...     b = 2\n",
    ],
)
def test_other_blocks_stay(text):
    assert typeset(text) == text


@pytest.mark.parametrize("cell", ["gru", "lstm", "slstm", "lru", "cfc"])
def test_those_of_the_cells_are_known_to_the_converter(cell):
    __import__(f"bptt.cells.{cell}")
    found = typeset(getattr(bptt.cells, cell).__doc__)
    _, tex, _ = found.split("$$")
    assert "\\" not in convert(tex, display="block")
