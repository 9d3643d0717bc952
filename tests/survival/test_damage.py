"""A bit that flips, or a file that is cut short: found, or without any effect."""

from __future__ import annotations

import random
import shutil

import pytest

NAMES = [
    *("config.json", "tokenizer.json", "text.json", "metrics.jsonl"),
    *("model.safetensors", "checkpoint.safetensors"),
]


@pytest.fixture(scope="module")
def trained(server, small, tmp_path_factory):
    """A run that was stopped in its second epoch, so that it has all kinds of files."""
    out = tmp_path_factory.mktemp("trained") / "run"
    server("begin", out=str(out), config={**small, "save_every": 1e9}, updates=9)
    return out


def cases_of(size, draw, most):
    """A flip in each byte, every third one of all bits, and as many cuts; spread over the file."""
    step = max(1, -(-size // most))
    cases = []
    for where in range(draw.randrange(step), size, step):
        bits = 255 if where % 3 == 0 else 1 << draw.randrange(8)
        cases.append(("flip", where, bits))
        if where % 4 == 0:
            cases.append(("cut", where, 0))
    # Where lengths, names and the digest are, each byte counts.
    return cases + [("flip", where, 1 << draw.randrange(8)) for where in range(0, min(size, 8))]


def damaged(server, trained, tmp_path, name, most):
    """Damage a file in many ways; return in how many."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    cases = cases_of((out / name).stat().st_size, random.Random(name), most)
    found, _ = server("damage", out=str(out), name=name, cases=cases)
    assert not found["wrong"], (
        f"{name}: {len(found['wrong'])} of {len(cases)}: {found['wrong'][:5]}"
    )
    assert found["found"] + found["harmless"] == len(cases)
    assert found["found"] > 0.9 * len(cases) or name == "config.json"
    return len(cases)


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_found_or_harmless(server, trained, tmp_path, name):
    damaged(server, trained, tmp_path, name, 12)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_found_or_harmless(server, trained, tmp_path, name, survived):
    survived("flips and cuts in a run", damaged(server, trained, tmp_path, name, 1500))
