from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from bptt._src.networks import NAMES
from bptt.cells import Weights
from bptt.data import encode_text
from bptt.errors import ConfigError, CorpusError
from bptt.language_model import evaluate, train


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize("reading", ["stream", "sentences"])
def test_is_the_sum_over_single_steps_whatever_the_batch_size(
    small, tmp_path, story, cell, reading
):
    run = train(small.changed(cell=cell, reading=reading, epochs=1), tmp_path / "run")
    model = run.load_model().double()
    page = story(24, seed=1)
    text = encode_text(page, model.tokenizer, reading=reading)
    ids = [int(i) for i in text.ids]
    edges = [0, len(ids)] if text.offsets is None else [int(o) for o in text.offsets]

    nats, count = 0.0, 0
    step = model.recurrent.cell
    w = model.recurrent._weights(0, False)
    with torch.no_grad():
        for a, b in pairwise(edges):
            state = tuple(torch.zeros(1, 16, dtype=torch.float64) for _ in range(step.states))
            for now, then in zip(ids[a : b - 1], ids[a + 1 : b], strict=True):
                state = step.step(model.embedding.weight[now : now + 1], state, Weights(*w))
                nats -= model.readout(state[0])[0].log_softmax(-1)[then].item()
                count += 1
    for batch_size, steps in ((1, 1), (3, 7), (64, 10_000)):
        score = evaluate(model, text, batch_size=batch_size, steps=steps)
        assert score.tokens == count
        assert score.nats == pytest.approx(nats, rel=1e-9)
    assert score.perplexity == pytest.approx(math.exp(nats / count))
    if reading == "stream":
        assert score.characters == len(page) - len(page.split()[0])  # the first is not predicted
    else:
        assert score.characters == len("".join(page.replace(". ", ".").splitlines()))
    assert score.bits_per_character == pytest.approx(nats / math.log(2) / score.characters)
    assert score.word_perplexity == pytest.approx(math.exp(nats / score.words))


@pytest.mark.parametrize("streams", [2, 3, 7, 40])
def test_streams_are_parts_from_a_zero_state_that_predict_the_same_tokens(run, story, streams):
    model = run.load_model().double()
    text = encode_text(story(24, seed=1), model.tokenizer, reading="stream")
    ids = torch.from_numpy(text.ids.astype("int64"))
    count = len(ids) - 1
    edges = [k * count // streams for k in range(streams + 1)]
    nats = 0.0
    with torch.no_grad():
        for first, last in pairwise(edges):
            logits, _ = model(ids[first:last].unsqueeze(1))
            expected = cross_entropy(logits[:, 0], ids[first + 1 : last + 1], reduction="sum")
            nats += float(expected)
    one = evaluate(model, text)
    for steps in (1, 7, 10_000):
        score = evaluate(model, text, streams=streams, steps=steps)
        assert score.nats == pytest.approx(nats, rel=1e-9)
        assert score.protocol.startswith(f"{streams} streams")
        for name in ("tokens", "words", "characters", "unknown"):
            assert getattr(score, name) == getattr(one, name)
    assert one.nats != pytest.approx(nats, rel=1e-4)


def test_streams_that_there_cannot_be_are_refused(run, small, tmp_path, story):
    model = run.load_model()
    text = encode_text("John sees Jane", model.tokenizer, reading="stream")
    assert evaluate(model, text, streams=2).tokens == 2
    for streams in (0, 3):
        with pytest.raises(ConfigError, match=f"streams must be from 1 to 2, .* got {streams}"):
            evaluate(model, text, streams=streams)
    model = train(small.changed(reading="lines", epochs=0), tmp_path / "lines").load_model()
    lines = encode_text(story(24), model.tokenizer, reading="lines")
    with pytest.raises(ConfigError, match="streams=2 is for a text that is read as a stream"):
        evaluate(model, lines, streams=2)


def test_long_sequences_come_in_windows_to_the_same_figure(small, tmp_path, story, monkeypatch):
    run = train(small.changed(reading="lines", epochs=1), tmp_path / "run")
    model = run.load_model().double()
    text = encode_text(story(24, seed=1), model.tokenizer, reading="lines")
    whole = evaluate(model, text)
    for window in (1, 3, 11):
        monkeypatch.setattr("bptt._src.language_model.evaluation.WINDOW", window)
        for batch_size in (1, 5):
            parts = evaluate(model, text, batch_size=batch_size)
            assert parts.tokens == whole.tokens
            assert parts.nats == pytest.approx(whole.nats, rel=1e-12)


def test_dropout_is_off_and_the_mode_comes_back(small, tmp_path):
    run = train(small.changed(dropout=0.5, epochs=1), tmp_path / "run")
    model = run.load_model().train()
    assert model.score("John sees Jane again.") == model.score("John sees Jane again.")
    assert model.training


def test_the_validation_figure_is_the_one_of_training(run):
    from bptt._src.language_model.session import text_of_run

    best = min(m["valid_loss"] for m in run.metrics() if "valid_loss" in m)
    assert evaluate(run.load_model(), text_of_run(run).valid).loss == pytest.approx(best)


def test_a_likelier_text_scores_better(run):
    model = run.load_model()
    right = model.score("John sees Jane again.\nMary hears the dog again.")
    wrong = model.score("again . Jane John sees\ndog the again. hears Mary")
    assert right.perplexity < 0.7 * wrong.perplexity


@pytest.mark.parametrize("text", ["", "   ", "John"])
def test_a_text_with_nothing_to_predict_is_refused(run, text):
    with pytest.raises(CorpusError):
        run.load_model().score(text)


@pytest.mark.parametrize(
    ("level", "text", "words", "characters"),
    [
        ("word", "John sees Jane", 2, len(" sees Jane")),
        ("word", "Zacharias sees Jane", 2, len(" sees Jane")),  # an unknown first token
        ("char", "John sees Jane", 3, len("ohn sees Jane")),
        ("char", "I am John again", 3, len(" am John again")),
    ],
)
def test_what_is_not_predicted_is_not_counted(small, tmp_path, level, text, words, characters):
    run = train(small.changed(level=level, epochs=0), tmp_path / "run")
    score = run.load_model().score(text)
    assert (score.words, score.characters) == (words, characters)
    assert score.bits_per_character == pytest.approx(score.nats / math.log(2) / characters)
