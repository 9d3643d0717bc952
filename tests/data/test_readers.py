from __future__ import annotations

import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.data import IGNORED, Batch, Sentences, Streams, Tokens, unigram_perplexity
from bptt.errors import CheckpointError, ConfigError, CorpusError


def stream(length: int) -> Tokens:
    """Every token tells its place."""
    return Tokens(np.arange(length, dtype=np.uint16), None, length, length, 0)


def sentences(lengths: list[int]) -> Tokens:
    """Sentences of 0, own numbers, 1; the lengths do not count the two marks."""
    parts = [[0, *[2 + i] * length, 1] for i, length in enumerate(lengths)]
    offsets = np.cumsum([0, *map(len, parts)])
    return Tokens(np.concatenate(parts).astype(np.uint32), offsets.astype(np.int64), 0, 0, 0)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.inputs, y.inputs)
        and torch.equal(x.targets, y.targets)
        and (x.fresh, x.tokens) == (y.fresh, y.tokens)
        for x, y in zip(a, b, strict=True)
    )


# Streams


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None)
def test_sequential_streams_are_slices_of_the_text(
    n: int, size: int, steps: int, seed: int
) -> None:
    if n - 1 < size:
        with pytest.raises(CorpusError, match=f"{size} streams: reduce batch_size"):
            Streams(stream(n), batch_size=size, steps=steps)
        return
    reader = Streams(stream(n), batch_size=size, steps=steps, seed=seed)
    for epoch in range(3):
        assert (reader.epoch, reader.position) == (epoch, 0)
        count = len(reader)
        batches = list(reader)
        assert len(batches) == count > 0
        inputs = torch.cat([batch.inputs for batch in batches])  # [length, size]
        targets = torch.cat([batch.targets for batch in batches])
        offset = int(inputs[0, 0])
        assert 0 <= offset < steps
        length = (n - 1 - offset) // size
        plain = torch.arange(offset, offset + length * size).reshape(size, length).T
        assert torch.equal(inputs, plain)
        assert torch.equal(targets, plain + 1)
        assert [b.fresh for b in batches] == [True] + [False] * (count - 1)
        assert [len(b.inputs) for b in batches[:-1]] == [steps] * (count - 1)
        assert 0 < len(batches[-1].inputs) <= steps
        assert all(b.tokens == b.inputs.numel() for b in batches)
        assert all(b.inputs.dtype == b.targets.dtype == torch.int64 for b in batches)


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None)
def test_random_windows_do_not_overlap(n: int, size: int, steps: int, seed: int) -> None:
    if n - 1 < steps:
        with pytest.raises(CorpusError, match=f"window of {steps} steps: reduce steps"):
            Streams(stream(n), batch_size=size, steps=steps, sampling="random")
        return
    reader = Streams(stream(n), batch_size=size, steps=steps, sampling="random", seed=seed)
    count = len(reader)
    batches = list(reader)
    assert len(batches) == count
    windows = [column for batch in batches for column in batch.inputs.T]
    offset = min(int(window[0]) for window in windows)
    assert 0 <= offset < steps
    assert len(windows) == (n - 1 - offset) // steps
    seen = sorted(int(i) for window in windows for i in window)
    assert seen == list(range(offset, offset + len(windows) * steps))
    for batch in batches:
        assert batch.fresh
        assert torch.equal(batch.targets, batch.inputs + 1)
        assert len(batch.inputs) == steps
    assert all(batch.inputs.shape[1] == size for batch in batches[:-1])


def test_offsets_and_order_differ_by_epoch_and_seed_and_cover_all() -> None:
    def offsets(seed: int) -> list[int]:
        reader = Streams(stream(1000), batch_size=2, steps=5, seed=seed)
        return [int(next(iter([*reader])).inputs[0, 0]) for _ in range(60)]

    assert set(offsets(0)) == {0, 1, 2, 3, 4}
    assert offsets(0) == offsets(0) != offsets(1)
    random = Streams(stream(1000), batch_size=2, steps=5, sampling="random")
    first, second = ([int(batch.inputs[0, 0]) for batch in random] for _ in range(2))
    assert first != sorted(first)
    assert first != second


# Sentences


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
@settings(deadline=None)
def test_every_sentence_comes_once_in_an_epoch(lengths: list[int], size: int, seed: int) -> None:
    reader = Sentences(sentences(lengths), batch_size=size, seed=seed)
    for _ in range(2):
        seen: Counter[int] = Counter()
        batches = list(reader)
        assert len(batches) == len(reader) == -(-len(lengths) // size)
        for batch in batches:
            assert batch.fresh
            assert batch.inputs.shape == batch.targets.shape
            assert batch.tokens == int((batch.targets != IGNORED).sum())
            assert bool((batch.targets[-1] != IGNORED).any())  # as long as the longest
            for x, y in zip(batch.inputs.T, batch.targets.T, strict=True):
                word = int(x[1])
                length = lengths[word - 2]
                assert x[: length + 1].tolist() == [0] + [word] * length
                assert y.tolist() == [word] * length + [1] + [IGNORED] * (len(y) - length - 1)
                seen[word] += 1
        assert seen == Counter(range(2, len(lengths) + 2))


def test_similar_lengths_come_together_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 4000).tolist()
    reader = Sentences(sentences(lengths), batch_size=16)
    first, second = list(reader), list(reader)
    padded = sum(batch.inputs.numel() for batch in first)
    assert 1 - sum(batch.tokens for batch in first) / padded < 0.02
    sizes = [len(batch.inputs) for batch in first]
    assert sizes != sorted(sizes)
    assert sizes != [len(batch.inputs) for batch in second]
    composition = {frozenset(batch.inputs[1].tolist()) for batch in first}
    assert composition != {frozenset(batch.inputs[1].tolist()) for batch in second}


def test_a_stream_has_no_sentences() -> None:
    with pytest.raises(ConfigError, match="one stream"):
        Sentences(stream(10), batch_size=2)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 9), st.integers(2, 40))
@settings(deadline=None)
def test_a_batch_is_bounded_by_its_tokens(lengths: list[int], size: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.setattr("bptt._src.data.readers.MOST", 0)
        patch.setattr("bptt._src.data.readers.MOST_OF_FEW", most)
        reader = Sentences(sentences(lengths), batch_size=size, seed=3)
    steps = [length + 1 for length in lengths]
    long = sum(s > most for s in steps)
    assert [str(w.message).split(" will")[0] for w in told] == (
        [f"{long} sequence{'s' * (long > 1)} of more than {most} tokens"] if long else []
    )
    batches = list(reader)
    assert len(batches) > 0
    read: list[list[int]] = []
    for batch in batches:
        assert batch.inputs.numel() <= most
        assert batch.inputs.shape[1] <= size
        columns = [
            list(zip(x[y != IGNORED].tolist(), y[y != IGNORED].tolist(), strict=True))
            for x, y in zip(batch.inputs.T, batch.targets.T, strict=True)
        ]
        if batch.fresh:
            read += columns
        else:
            assert len(columns) == 1
            read[-1] += columns[0]  # goes on where the batch before ended
    expected = [
        [(0, word), *[(word, word)] * (length - 1), (word, 1)]
        for word, length in enumerate(lengths, 2)
    ]
    assert sorted(read) == sorted(expected)


def test_short_sentences_are_not_bounded() -> None:
    reader = Sentences(sentences([999] * 60), batch_size=20)
    assert [tuple(batch.inputs.shape) for batch in reader] == [(1000, 20)] * 3
    longer = Sentences(sentences([1999] * 60), batch_size=20)
    assert [tuple(batch.inputs.shape) for batch in longer] == [(2000, 10)] * 6
    alone = Sentences(sentences([19_999]), batch_size=1)
    assert [tuple(batch.inputs.shape) for batch in alone] == [(20_000, 1)]


# Resuming


def _windows() -> Sentences:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Sentences(sentences([3, 50_000, 5, 30_000]), batch_size=4, seed=5)


READERS = {
    "sequential": lambda: Streams(stream(200), batch_size=3, steps=7, seed=5),
    "random": lambda: Streams(stream(200), batch_size=3, steps=7, sampling="random", seed=5),
    "windows": lambda: _windows(),
    "sentences": lambda: Sentences(sentences(list(range(1, 30))), batch_size=4, seed=5),
}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_resuming_is_exact_at_every_position(make) -> None:  # type: ignore[no-untyped-def]
    reader = make()
    given, states = [], []
    for _ in range(3):
        for batch in reader:
            given.append(batch)
            states.append(json.dumps(reader.state_dict()))  # taken after the batch was used
    for i, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        rest: list[Batch] = []
        while resumed.epoch < 3:
            rest += resumed
        assert equal(rest, given[i + 1 :])


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_iteration_that_was_left_goes_on(make) -> None:  # type: ignore[no-untyped-def]
    whole = list(make())
    reader = make()
    first = next(iter(reader))
    assert equal([first, *reader], whole)
    assert (reader.epoch, reader.position) == (1, 0)


def test_a_position_of_another_reader_is_refused() -> None:
    state = READERS["sequential"]().state_dict()
    for other, key in (
        (Streams(stream(201), batch_size=3, steps=7, seed=5), "tokens"),
        (Streams(stream(200), batch_size=4, steps=7, seed=5), "batch_size"),
        (Streams(stream(200), batch_size=3, steps=8, seed=5), "steps"),
        (Streams(stream(200), batch_size=3, steps=7, seed=6), "seed"),
        (READERS["random"](), "sampling"),
        (READERS["sentences"](), "reader"),
    ):
        with pytest.raises(CheckpointError, match=f"{key}="):
            other.load_state_dict(state)
    for damaged in ({**state, "epoch": "x"}, {**state, "position": -1}, {}):
        with pytest.raises(CheckpointError):
            READERS["sequential"]().load_state_dict(damaged)


def test_arguments_out_of_range_are_refused() -> None:
    for options in ({"batch_size": 0, "steps": 1}, {"batch_size": 1, "steps": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            Streams(stream(9), **options)
    with pytest.raises(ConfigError, match="sequential or random"):
        Streams(stream(9), batch_size=1, steps=1, sampling="shuffled")


# The unigram model


def test_the_unigram_model_of_a_stream_by_hand() -> None:
    train = Tokens(np.array([2, 0, 0, 1], np.uint16), None, 0, 0, 0)  # targets 0 0 1
    valid = Tokens(np.array([0, 0, 1, 2], np.uint16), None, 0, 0, 0)  # targets 0 1 2
    expected = (3 / 6 * 2 / 6 * 1 / 6) ** (-1 / 3)
    assert unigram_perplexity(train, valid, 3) == pytest.approx(expected)


def test_the_unigram_model_of_sentences_leaves_out_the_start() -> None:
    train, valid = sentences([2, 1]), sentences([1])  # targets 2 2 1, 3 1; and 2 1
    expected = math.sqrt((9 / 3) * (9 / 3))
    assert unigram_perplexity(train, valid, 4) == pytest.approx(expected)
    with pytest.raises(CorpusError, match="no target"):
        unigram_perplexity(train, stream(1), 4)
