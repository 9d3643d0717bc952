from __future__ import annotations

import json

import pytest

from bptt._src.documents import sealed
from bptt._src.language_model.config import Config
from bptt._src.language_model.options_file import read_options
from bptt._src.networks import NAMES
from bptt.errors import ConfigError


def test_goes_through_json_unchanged(tmp_path):
    config = Config(corpus=("a.txt", "b.txt"), cell="rnn", nonlinearity="relu", patience=3)
    (tmp_path / "config.json").write_text(sealed(config.to_dict()))
    assert Config(**read_options(tmp_path / "config.json")) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"hidden": 2.5}, "hidden must be a whole number, got 2.5"),
        ({"hidden": True}, "hidden must be a whole number, got True"),
        ({"cell": "lstn"}, f"cell must be one of {', '.join(NAMES)}, or your own as"),
        (
            {"learning_rate": float("nan")},
            "learning_rate must be a finite number or null, got nan",
        ),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"corpus": "book.txt"}, "corpus must be a list of str, got 'book.txt'"),
        ({"valid": "book.txt"}, "valid must be a list of str, got 'book.txt'"),
        ({"seed": 2**63}, "seed must be at most 9223372036854775807, got 9223372036854775808"),
        ({"vocabulary": 10**21}, "vocabulary must be at most 1000000000"),
        ({"threads": 1025}, "threads must be at most 1024, got 1025"),
        ({"patience": "3"}, "patience must be a whole number or null"),
        ({"zoneout": [0.1, "x"]}, "zoneout must be a finite number, got 'x'"),
    ],
)
def test_refuses_values_of_the_wrong_kind_in_a_file(tmp_path, options, message):
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match=message):
        read_options(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        (
            {"learning_rate": float("inf")},
            "learning_rate must be a finite number or null, got inf",
        ),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"zoneout": 1.0}, "cell='lstm': zoneout must be a number from 0 to below 1, or a tuple"),
        ({"zoneout": (0.1, 0.2), "cell": "gru"}, "or a tuple of 1, one for each tensor .* of GRU"),
        ({"valid_fraction": 1.5}, "valid_fraction"),
        ({"tied": True, "embedding": 3}, "tied needs an embedding of the hidden layer's size"),
        ({"nonlinearity": "relu"}, "nonlinearity='relu' is for cell='rnn', got cell='lstm': leave"),
        ({"momentum": 0.9}, "momentum=0.9 is for optimizer='sgd', got"),
        ({"sampling": "random", "reading": "lines"}, "sampling='random' is for reading='stream'"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration"),
        ("{", "is not a JSON file"),
        ("[1]", "must hold an object"),
        ('{"hiden": 3}', "hiden"),
    ],
)
def test_refuses_files_that_are_not_options(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_options(path)


def test_the_rate_and_the_embedding_follow_other_options_unless_given():
    assert Config(optimizer="sgd").base_rate == 1.0
    assert Config(optimizer="adamw").base_rate == 0.003
    assert Config(optimizer="adamw", learning_rate=0.5).base_rate == 0.5
    assert Config(hidden=30).embedding_size == 30
    assert Config(hidden=30, embedding=7).embedding_size == 7


def test_tied_weights_have_no_rows_that_are_not_used():
    with pytest.raises(ConfigError, match="is for an embedding of its own"):
        Config(tied=True, embedding_rows="used")
