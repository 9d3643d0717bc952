"""What is unknown stands beside every perplexity; typed text is treated as a file's is."""

from __future__ import annotations

import pytest

from bptt._src.cli.display import Display
from bptt._src.language_model.sampling import _prepared
from bptt.data import encode_corpus, encode_text, open_corpus
from bptt.errors import BpttWarning
from bptt.language_model import evaluate, start, train


@pytest.fixture
def few_words(small, tmp_path):
    """A run that knows the four most frequent words."""
    with pytest.warns(BpttWarning, match=r"\d+ % of the tokens of the held-out part of book.txt"):
        return train(small.changed(vocabulary=5, epochs=1), tmp_path / "run")


def test_unknown_tokens_are_counted_where_they_are_predicted(few_words, story):
    model = few_words.load_model()
    for text, reading in (("qq xx qq\n", "stream"), (story(20), "stream")):
        tokens = encode_text(text, model.tokenizer, reading=reading)
        predicted = tokens.ids[1:].tolist()
        score = evaluate(model, tokens)
        assert score.unknown == predicted.count(model.tokenizer.unknown) > 0
        assert score.unknown_share == score.unknown / len(predicted)
        assert score.to_dict()["unknown_share"] == score.unknown_share


def test_much_that_is_unknown_is_warned_of_with_the_level_that_avoids_it(
    few_words, small, tmp_path
):
    model = few_words.load_model()
    with pytest.warns(
        BpttWarning, match="100 % of the tokens of the text .* level='bpe' .*vocabulary"
    ):
        model.score("qq xx yy")
    characters = train(small.changed(level="char", epochs=1), tmp_path / "char").load_model()
    with pytest.warns(BpttWarning, match="level='bpe' knows every word$"):
        characters.score("QQQ QQQ")
    characters.score("John sees Jane again. Q")  # little is unknown


def test_training_shows_it_beside_every_perplexity(small, tmp_path, capsys):
    display = Display()
    config = small.changed(vocabulary=5, epochs=1)
    with pytest.warns(BpttWarning, match="unknown"):
        training = start(config, tmp_path / "run", watch=display)
    display.begin(training, resumed=False)
    training.fit()
    display.conclude(training)
    shown = [line for line in capsys.readouterr().out.splitlines() if "erplexity" in line]
    learnt = f"training perplexity {{}} ({100 * training.text.train.unknown_share:.1f} % unknown)"
    assert len(shown) == 2
    for line in shown:
        assert line.count("% unknown") == line.count("erplexity"), line
        if "training" in line:
            assert learnt.split("{}")[1] in line


@pytest.mark.parametrize("reading", ["stream", "lines", "sentences"])
def test_line_ends_and_marks_are_those_of_a_file(small, tmp_path, story, reading):
    """The same text scored otherwise when it came with another system's line ends."""
    run = train(small.changed(level="char", reading=reading, epochs=1), tmp_path / "run")
    model, text = run.load_model(), story(20)
    expected = model.score(text)
    for other in (text.replace("\n", "\r\n"), "\ufeff" + text, text.replace("\n", "\r")):
        assert model.score(other) == expected
        path = tmp_path / "other.txt"
        path.write_bytes(other.encode())
        assert (
            evaluate(model, encode_corpus(open_corpus(path), model.tokenizer, reading=reading))
            == expected
        )
    prompt = "John sees\nJane" if reading != "lines" else "John sees"
    told = {"length": 5, "temperature": 0}
    plain = model.sample(prompt, **told)
    assert model.sample("\ufeff" + prompt.replace("\n", "\r\n"), **told) == plain


def test_white_space_of_a_prompt():
    assert _prepared(" a\r\n b ", "sentences") == "a b "
    assert _prepared(" \n", "sentences") == ""
    assert _prepared(" a\r\n b ", "lines") == " a\n b "
