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


@pytest.mark.parametrize(
    ("text", "set_"),
    [
        ("Return ‖C[t, i]‖, of shape [T, T].", r"Return $\Vert C[t, i]\Vert$, of shape [T, T]."),
        ("the input x_t [B, I] (or h_t)", r"the input $x_{t}$ [B, I] (or $h_{t}$)"),
        ("a = W x_t + b, a sum", r"$a = W x_{t} + b$, a sum"),
        ("c_j = 1 / mean; mean c_j a day", r"$c_{j} = 1 /\text{ mean}$; mean $c_{j}$ a day"),
        ("of a δ_t as\n    wide", "of a $δ_{t}$ as\n    wide"),
        ("``n`` is\n\n- b_f, of ``m``", "``n`` is\n\n- $b_{f}$, of ``m``"),
        ("about 1 / (1 - |λ|) steps", "about $1 / (1 - |λ|)$ steps"),
        ("lies in ξ_j ∈ {0, 1/π_j}.", r"lies in $ξ_{j} ∈ \{0, 1/π_{j}\}$."),
        ("σ(x) = 1 / (1 + e^-x) to\n√(1 - |λ|²)", r"$σ(x) = 1 / (1 + e^{-x})$ to"
         "\n" r"$\sqrt{1 - |λ|^{2} }$"),
        ("‖∂L_t/∂state_s‖", r"$\Vert \partial L_{t}/\partial \mathrm{state}_{s}\Vert$"),
        ("the sum\n    ∂L/∂h_t +\n    ∂L/∂c_t", "the sum\n    $"
         r"\partial L/\partial h_{t} + \partial L/\partial c_{t}$"),
    ],
)  # fmt: skip
def test_formulas_within_sentences(text, set_):
    assert typeset(text) == set_


@pytest.mark.parametrize(
    "text",
    [
        "``h_t = W x_t`` in [T, B, H], a k-th I/O of two, see h's.",
        "Args:\n    x_t: an input, of_x, weight_ih_l0 and 1 - 2.\n    tau: below ``most``.",
        ">>> φ = h_t + 1\n>>> φ\nλ",
        "It is 10⁻⁶ of [G·H, I], from 1 to longest - 1, where T ≥ 2 (a, I).",
    ],
)
def test_code_and_shapes_are_no_formulas(text):
    assert typeset(text) == text
