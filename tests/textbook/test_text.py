"""Text becomes sentences of ids; NumPy's part of the package asks for no torch."""

import subprocess
import sys

import numpy as np
import pytest

from bptt.textbook import Model, sentence_data

TEXT = "Mary met John.\n\n  \nJohn met Mary's dog, didn't he?\nJohn slept."


def test_every_word_comes_back():
    words, X, Y = sentence_data(TEXT)
    assert words[:3] == ["<s>", "</s>", "<unk>"]
    assert len({*words}) == len(words)
    for x, y, line in zip(X, Y, [part for part in TEXT.split("\n") if part.strip()], strict=True):
        assert x[1:] == y[:-1]
        assert (words[x[0]], words[y[-1]]) == ("<s>", "</s>")
        assert "".join(words[i] for i in y[:-1]) == line.lower().replace(" ", "")
    assert [words[i] for i in X[1]][3:6] == ["mary's", "dog", ","]
    assert not any(2 in y for y in Y)


def test_the_most_frequent_words_are_kept():
    words, _, Y = sentence_data(TEXT, word_dim=6)
    assert words == ["<s>", "</s>", "<unk>", "john", "met", "."]  # 3, 2, 2: the earlier first
    assert Y[2] == [3, 2, 5, 1]
    assert sentence_data(TEXT, word_dim=100) == sentence_data(TEXT)


def test_what_it_returns_trains_a_model():
    words, X, Y = sentence_data(TEXT)
    model = Model(len(words), 16, bptt_truncate=None, seed=0)
    model.train(X, Y, learning_rate=0.3, nepoch=60, log=None)
    assert model.calculate_total_loss(X, Y) < 0.3 * np.log(len(words))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("a b", 3), "word_dim=3 leaves no word beside"),
        (("", None), "no word in a text of 0 characters"),
        ((" \n ", 10), "no word in a text of 3 characters"),
    ],
)
def test_what_has_no_words_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        sentence_data(*given)


def test_import_bptt_reaches_the_textbook_and_loads_no_torch():
    code = (
        "import bptt, sys; before = {*sys.modules} & {'numpy', 'torch', 'bptt.textbook'};"
        "words, X, Y = bptt.textbook.sentence_data('a b');"
        "bptt.textbook.Model(len(words), 4).bptt(X[0], Y[0]);"
        "print(sorted(before), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
