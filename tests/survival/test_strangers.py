"""A run that somebody else has made, with the right digests: used, or refused in one line."""

from __future__ import annotations

import json
import random
import shutil

import dying
import pytest

NASTY = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, 10**400, 0.5, -1e308, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "a\nb", "\x00", "\ud800", "x" * 10_000),
    *([], {}, [1], ["x"], {"x": 1}, [[[]]], [None] * 3),
]
SEALED = ["config.json", "text.json", "tokenizer.json", "checkpoint.safetensors"]


@pytest.fixture(scope="module")
def theirs(server, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("theirs") / "run"
    # With a state that an adaptive credit has learnt, and a look at the gradient.
    config = {**small, "save_every": 1e9, "epochs": 50, "credit": "adaptive:0.3", "steps": None}
    server("begin", out=str(out), config={**config, "optimizer": "adam"}, updates=9)
    return out


def document_of(path):
    if path.suffix == ".safetensors":
        return dying.about_of(path)
    return json.loads(path.read_text())


def paths_in(value, before=()):
    """Each entry of a document; of a long list, or a vocabulary, the first two."""
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        return
    for key, inner in entries if len(entries) < 60 else entries[:2]:
        if before or key not in ("sha256", "format"):
            yield [*before, key]
            yield from paths_in(inner, (*before, key))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def cases_of(document):
    values = [*NASTY, nested(60)]
    found = [[path, value] for path in paths_in(document) for value in values]
    found += [[path] for path in paths_in(document)]  # taken away
    return found


def tried(server, theirs, tmp_path, name, cases):
    out = tmp_path / "run"
    shutil.copytree(theirs, out)
    found, _ = server("mutate", out=str(out), name=name, cases=cases)
    assert not found["wrong"], f"{len(found['wrong'])} of {len(cases)}: {found['wrong'][:8]}"
    assert found["refused"] + found["used"] == len(cases)
    return len(cases)


@pytest.mark.parametrize("name", SEALED)
def test_some_values_of_any_type_in_any_field(server, theirs, tmp_path, name):
    cases = cases_of(document_of(theirs / name))
    tried(server, theirs, tmp_path, name, random.Random(name).sample(cases, 25))


@pytest.mark.long
@pytest.mark.parametrize("name", SEALED)
def test_values_of_any_type_in_any_field(server, theirs, tmp_path, name, survived):
    cases = cases_of(document_of(theirs / name))
    if len(cases) > 1500:
        cases = random.Random(name).sample(cases, 1500)
    survived(
        "fields of a stranger's run with values of another kind",
        tried(server, theirs, tmp_path, name, cases),
    )
