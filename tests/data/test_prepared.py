from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bptt._src.data import prepared as module
from bptt._src.data.splitting import split
from bptt._src.data.tokens import TokenWriter
from bptt.data import (
    LEVELS,
    Corpus,
    PreparedText,
    Tokenizer,
    Tokens,
    cache_directory,
    encode_corpus,
    encode_text,
    load_prepared,
    open_corpus,
    prepare,
)
from bptt.errors import BpttWarning, ConfigError, CorpusError

Make = Callable[..., Corpus]


def sequences(tokens: Tokens) -> list[list[int]]:
    assert tokens.offsets is not None
    edges = tokens.offsets.tolist()
    return [tokens.ids[a:b].tolist() for a, b in itertools.pairwise(edges)]


def same(a: PreparedText, b: PreparedText) -> bool:
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(x.ids, y.ids)
        and (x.characters, x.words, x.unknown) == (y.characters, y.words, y.unknown)
        and (x.first_characters, x.first_words) == (y.first_characters, y.first_words)
        for x, y in ((a.train, b.train), (a.valid, b.valid))
    )


# The split


@pytest.mark.parametrize("level", LEVELS)
def test_a_stream_is_split_at_the_first_line_end(corpus: Make, story: str, level: str) -> None:
    place = len(story) - len(story) // 10
    place = story.index("\n", place - 1) + 1
    text = prepare(corpus(story), level=level)
    expected = Tokenizer.train([story[:place]], level=level)  # from the training part alone
    assert text.tokenizer.to_json() == expected.to_json()
    assert text.train.ids.tolist() == expected.encode(story[:place])
    assert text.valid.ids.tolist() == expected.encode(story[place:])
    assert (text.train.characters, text.valid.characters) == (place, len(story) - place)
    assert text.train.words == len(story[:place].split())
    assert text.valid.unknown == text.valid.ids.tolist().count(text.tokenizer.unknown)
    assert text.train.offsets is None
    assert isinstance(text.train.ids, np.memmap)


def test_without_a_line_end_nearby_the_split_is_exact(corpus: Make) -> None:
    text = "ab" * 5000 + "\n"
    for held_out in (0.25, 0.1, 0.001999):
        split = prepare(corpus(text), level="char", valid_fraction=held_out)
        assert len(split.valid.ids) == int(len(text) * held_out)


def test_the_line_end_may_lie_right_at_the_place(corpus: Make) -> None:
    text = ("x" * 99 + "\n") * 20
    split = prepare(corpus(text), level="char", valid_fraction=0.5)
    assert len(split.train.ids) == 1000


@pytest.mark.parametrize("reading", ["sentences", "lines"])
@pytest.mark.parametrize("level", LEVELS)
def test_sequences_have_their_marks(corpus: Make, story: str, level: str, reading: str) -> None:
    text = prepare(corpus(story), level=level, reading=reading, valid_fraction=0.2)
    start, end = text.tokenizer.start, text.tokenizer.end
    train, valid = sequences(text.train), sequences(text.valid)
    assert all(s[0] == start and s[-1] == end and len(s) > 2 for s in train + valid)
    assert not any({start, end} & set(s[1:-1]) for s in train + valid)
    shown = [text.tokenizer.decode(s) for s in train]
    if level != "word":
        first = "The traveller number 0 went on, half-way to o'clock 0."
        assert shown[0] == first
        line = '"Soft! who comes here?" said the other; "it is not'
        assert (line in shown) == (reading == "lines")
    share = text.valid.characters / (text.train.characters + text.valid.characters)
    assert share == pytest.approx(0.2, abs=0.01)


def test_a_text_of_its_own_can_be_held_out(corpus: Make, story: str) -> None:
    other = corpus(story[:500], "other.txt")
    text = prepare(corpus(story), level="char", valid_corpus=other, valid_fraction=0)
    assert text.train.characters == len(story)
    assert text.valid.ids.tolist() == text.tokenizer.encode(story[:500])
    changed = corpus(story[:600], "third.txt")
    again = prepare(corpus(story), level="char", valid_corpus=changed)
    assert again.fingerprint != text.fingerprint


# max_tokens


def test_max_tokens_limits_characters_before_the_split(corpus: Make, story: str) -> None:
    text = prepare(corpus(story), level="char", max_tokens=10_000)
    assert len(text.train.ids) + len(text.valid.ids) == 10_000
    assert [*text.train.ids, *text.valid.ids] == text.tokenizer.encode(story[:10_000])


@pytest.mark.parametrize("level", ["word", "byte"])
def test_max_tokens_limits_streams(corpus: Make, story: str, level: str) -> None:
    text = prepare(corpus(story), level=level, max_tokens=1000)
    ids = [*text.train.ids, *text.valid.ids]
    assert len(ids) == 1000
    assert ids == text.tokenizer.encode(story)[:1000]


def test_max_tokens_of_bpe(corpus: Make, story: str) -> None:
    small = prepare(corpus(story), level="bpe", vocabulary=300, max_tokens=500)
    assert 500 <= len(small.train.ids) + len(small.valid.ids) < 5000
    exact = prepare(corpus(story), tokenizer=small.tokenizer, max_tokens=500)
    assert len(exact.train.ids) + len(exact.valid.ids) == 500


def test_max_tokens_of_sequences_counts_their_marks(corpus: Make) -> None:
    text = prepare(corpus("a b c\n" * 100), reading="lines", max_tokens=104)
    assert len(text.train.ids) + len(text.valid.ids) == 100  # 20 whole lines of 5


def test_more_tokens_than_there_are(corpus: Make, story: str) -> None:
    text = prepare(corpus(story), level="char", max_tokens=10**9)
    assert text.train.characters + text.valid.characters == len(story)


@pytest.mark.parametrize("level", LEVELS)
@given(
    text=st.text("aé'. \n", min_size=60, max_size=120).filter(lambda text: len(text.split()) > 5),
    limit=st.integers(1, 100),
    reading=st.sampled_from(["stream", "lines", "sentences"]),
)
@example(text=f"{'a' * 50} a a a a a", limit=1, reading="stream")
@settings(deadline=None, max_examples=25)
def test_both_parts_together_have_no_more_than_max_tokens(
    level: str, text: str, limit: int, reading: str
) -> None:
    tokenizer = Tokenizer.train([text], level=level, sentences=True)
    total = 0
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt._src.data.sequences.LONGEST", 20)
        path = Path(place, "text.txt")
        path.write_text(text, encoding="utf-8")
        try:
            where = split(open_corpus(path), reading, 0.3, tokenizer, limit)
        except CorpusError:  # too few sequences
            return
        for part in (where.train(), where.valid()):
            with Path(place, "ids").open("wb") as ids, Path(place, "offsets").open("wb") as offsets:
                writer = TokenWriter(tokenizer, reading, ids, offsets)
                writer.write(part)
            total += writer.tokens
    assert total <= limit


def test_a_word_is_not_cut_where_there_is_white_space(corpus: Make) -> None:
    """The limit was 15, and 12 + 4 were made of it because a word became two."""
    text = "some words of seven letters follow, " * 50
    for fraction in (0.1, 0.3, 0.5):
        options = {"max_tokens": 150, "valid_fraction": fraction}
        found = prepare(corpus(text), **options)  # type: ignore[arg-type]
        ids = [*found.train.ids, *found.valid.ids]
        assert ids == found.tokenizer.encode(text)[:150]
        whole = found.train.characters + found.valid.characters
        assert found.valid.characters == pytest.approx(whole * fraction, abs=8)
    one = "a" * 500 + " " + "b" * 100  # the space is before the intended place
    found = prepare(corpus(one), level="char", valid_fraction=0.15)
    assert found.train.characters == 500


def test_a_word_that_becomes_two_counts_as_two(corpus: Make) -> None:
    text = "b " * 20 + "a" * 4000 + " b" * 20
    found = prepare(corpus(text), max_tokens=35, valid_fraction=0.4)
    assert found.train.characters == 4068 - 1627  # inside the long word
    assert (len(found.train.ids), len(found.valid.ids)) == (21, 14)


# Long sequences


@pytest.mark.parametrize("reading", ["lines", "sentences"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("longest", [1 << 18, 1000])
def test_a_sequence_is_one_however_long(
    corpus: Make, level: str, reading: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of more than 1,000 tokens became several, with ends that the text does not have."""
    monkeypatch.setattr("bptt._src.data.sequences.LONGEST", longest)
    one = "a bb  ccc " * 999 + "d"  # 9,991 characters
    between = "\n" if reading == "lines" else "\n\n"
    text = prepare(corpus(between.join([one] * 20)), level=level, reading=reading)
    found = sequences(text.train) + sequences(text.valid)
    assert len(found) == 20
    expected = one if reading == "lines" else " ".join(one.split())
    if level in ("word", "whitespace"):
        expected = " ".join(one.split())
    assert all(text.tokenizer.decode(ids) == expected for ids in found)
    start, end = text.tokenizer.start, text.tokenizer.end
    assert all(ids[0] == start and ids[-1] == end for ids in found)
    assert not any({start, end} & set(ids[1:-1]) for ids in found)
    assert text.train.words + text.valid.words == 20 * len(one.split())
    assert text.train.characters + text.valid.characters == 20 * len(one)


def test_a_long_sequence_is_held_out_whole(corpus: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bptt._src.data.sequences.LONGEST", 50)
    long, short = "word " * 100, "a few words and more\n" * 2
    for text, train in ((long + "\n" + short, 100), (short + long, 10)):
        found = prepare(corpus(text), reading="lines", valid_fraction=0.5)
        assert found.train.words == train
        assert found.train.words + found.valid.words == 110
    limited = prepare(corpus(short * 2 + long), reading="lines", valid_fraction=0.5, max_tokens=80)
    assert len(limited.train.ids) + len(limited.valid.ids) == 4 * 7  # the long line does not fit


@pytest.mark.parametrize("reading", ["lines", "sentences"])
@pytest.mark.parametrize("level", LEVELS)
def test_no_entry_reaches_across_two_sequences(corpus: Make, level: str, reading: str) -> None:
    """Without a full stop at their ends they were glued where the vocabulary is made."""
    names = ["Anna", "Bertha", "Carla", "Dora", "Emil"] * 40
    between = "\n" if reading == "lines" else "\n\n"
    text = prepare(corpus(between.join(names)), level=level, reading=reading)
    entries = [text.tokenizer.token(i) for i in range(text.tokenizer.size)]
    if level == "word":
        assert sorted(entries) == sorted(["<unk>", "<s>", "</s>", *set(names)])
    if level == "bpe":
        merged = [entry for entry in entries if len(entry) > 1 and entry not in ("<s>", "</s>")]
        assert "Anna" in merged
        assert all(any(entry in name for name in names) for entry in merged)
    assert text.train.unknown == text.valid.unknown == 0
    assert "\n" not in entries


# Refusals


def test_what_does_not_fit_is_refused_before_the_text_is_read(corpus: Make) -> None:
    text = corpus("text")
    text.pieces = lambda: pytest.fail("was read")  # type: ignore[method-assign]
    for options, match in (
        ({"valid_fraction": 0.0}, "above 0 and below 1"),
        ({"valid_fraction": 1.0}, "above 0 and below 1"),
        ({"reading": "pages"}, "stream, sentences, lines"),
        ({"level": "letter"}, "word, whitespace, char, byte, bpe"),
        ({"vocabulary": 1}, "at least 2"),
        ({"max_tokens": 0}, "at least 1"),
        ({"tokenizer": Tokenizer.train(["a"], level="word"), "reading": "lines"}, "start and end"),
    ):
        with pytest.raises(ConfigError, match=match):
            prepare(text, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("reading", ["stream", "sentences", "lines"])
def test_too_short_a_text_is_refused_and_leaves_nothing(corpus: Make, reading: str) -> None:
    for text in ("a", "word " * 20, "one.\ntwo.\n"):
        with pytest.raises(CorpusError, match=r"text.txt (is too short|has only one)"):
            prepare(corpus(text), reading=reading)
    assert list((cache_directory() / "texts").iterdir()) == []


@pytest.mark.parametrize(("reading", "one"), [("lines", "line"), ("sentences", "sentence")])
def test_a_single_sequence_is_refused_by_name(
    corpus: Make, story: str, reading: str, one: str
) -> None:
    text = corpus("and so it goes on " * 100, "long.txt")
    match = rf"long\.txt has only one {one}, but both training and validation need some: .*valid"
    with pytest.raises(CorpusError, match=match):
        prepare(text, reading=reading)
    with pytest.raises(CorpusError, match=f"no whole {one} within its first 50 tokens"):
        prepare(text, reading=reading, max_tokens=50, valid_corpus=corpus(story))
    assert prepare(text, reading=reading, valid_corpus=corpus(story)).train.words == 500


def test_each_part_has_a_sequence_where_one_is_longer_than_its_share(corpus: Make) -> None:
    short, long = "a b c d e f g h i", "a b c d e f g h i " * 50
    for first, second in ((long, short), (short, long)):
        found = prepare(corpus(f"{first}\n{second}\n"), reading="lines")
        assert found.train.words == len(first.split())
        assert found.valid.words == len(second.split())


# The cache


@pytest.mark.parametrize("reading", ["stream", "sentences"])
def test_the_second_time_comes_from_the_cache(
    corpus: Make, story: str, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(corpus(story), reading=reading)
    monkeypatch.setattr(module, "_build", lambda *a: pytest.fail("was built again"))
    again = prepare(corpus(story, "renamed.txt"), reading=reading)
    found = load_prepared(first.fingerprint)
    assert found is not None
    assert same(first, again)
    assert same(first, found)
    assert first.train.first_characters == (3 if reading == "stream" else 0)
    assert found.tokenizer.to_json() == first.tokenizer.to_json()
    assert found.name == "text.txt"
    assert again.name == "renamed.txt"


def test_every_setting_is_in_the_fingerprint(corpus: Make, story: str) -> None:
    settings: list[dict[str, object]] = [
        {},
        {"level": "char"},
        {"vocabulary": 30},
        {"lowercase": True},
        {"reading": "lines"},
        {"valid_fraction": 0.2},
        {"max_tokens": 2000},
        {"tokenizer": Tokenizer.train(["a b"], level="word")},
    ]
    found = [prepare(corpus(story), **options) for options in settings]  # type: ignore[arg-type]
    found.append(prepare(corpus(story + "more\n")))
    assert len({text.fingerprint for text in found}) == len(found)
    contents = {(text.train.ids.tobytes(), text.valid.ids.tobytes()) for text in found}
    assert len(contents) == len(found)


def test_a_text_is_found_when_its_source_is_gone(corpus: Make, story: str, tmp_path: Path) -> None:
    text = prepare(corpus(story), cache=tmp_path / "mine")
    (tmp_path / "text.txt").unlink()
    assert load_prepared(text.fingerprint, tmp_path / "mine") is not None
    assert load_prepared(text.fingerprint) is None
    assert load_prepared("../../etc") is None


def _cut_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "ids cut": lambda entry: _cut_file(entry / "train.ids"),
    "offsets cut": lambda entry: _cut_file(entry / "valid.offsets"),
    "ids gone": lambda entry: (entry / "valid.ids").unlink(),
    "meta cut": lambda entry: _cut_file(entry / "meta.json"),
    "meta empty": lambda entry: (entry / "meta.json").write_text("{}"),
    "meta of another kind": lambda entry: (entry / "meta.json").write_text("[1]"),
    "tokenizer cut": lambda entry: _cut_file(entry / "tokenizer.json"),
    "tokenizer changed": lambda entry: (entry / "tokenizer.json").write_text(
        (entry / "tokenizer.json").read_text().replace("traveller", "traveler")
    ),
    "nothing in it": lambda entry: [path.unlink() for path in entry.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(
    corpus: Make, story: str, damage: Callable[[Path], object]
) -> None:
    first = prepare(corpus(story), reading="sentences")
    entry = cache_directory() / "texts" / first.fingerprint
    ids = first.train.ids.tolist()
    del first
    damage(entry)
    with pytest.warns(BpttWarning, match=f"{entry.name} is damaged .*prepared again"):
        assert load_prepared(entry.name) is None
    with pytest.warns(BpttWarning, match="damaged") as told:
        again = prepare(corpus(story), reading="sentences")
    assert len(told) == 1
    assert again.train.ids.tolist() == ids
    assert load_prepared(entry.name) is not None
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def _changes(data: bytes, kind: str, place: int) -> bytes:
    if kind == "cut":
        return data[:place]
    return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def check_damage(corpus: Make, story: str, step: int) -> int:
    """Flip bytes and cut files: the same text, or none with a warning. Returns the cases."""
    first = prepare(corpus(story[:3000]), reading="lines", vocabulary=60)
    expected = [part.ids.tolist() for part in (first.train, first.valid)]
    entry = cache_directory() / "texts" / first.fingerprint
    cases = 0
    for path in sorted(entry.iterdir()):
        data = path.read_bytes()
        for kind in ("flip", "cut"):
            for place in range(0, len(data), step):
                path.write_bytes(_changes(data, kind, place))
                with pytest.warns(BpttWarning, match="damaged"):
                    assert load_prepared(entry.name) is None, (path, kind, place)
                cases += 1
        path.write_bytes(data)
    again = load_prepared(entry.name)
    assert again is not None
    assert [part.ids.tolist() for part in (again.train, again.valid)] == expected
    return cases


def test_flips_and_cuts_in_the_cache_are_found(corpus: Make, story: str) -> None:
    assert check_damage(corpus, story, 150) > 50


@pytest.mark.long
def test_every_flip_and_cut_in_the_cache_is_found(corpus: Make, story: str, survived) -> None:  # type: ignore[no-untyped-def]
    survived("flips and cuts in cached text", check_damage(corpus, story, 1))


def test_ids_beyond_the_vocabulary_are_refused(corpus: Make, story: str) -> None:
    """Right digests, wrong content: what wrote it was wrong."""
    entry = cache_directory() / "texts" / prepare(corpus(story)).fingerprint
    ids = np.fromfile(entry / "train.ids", "<u2")
    ids[5] = 60_000
    ids.tofile(entry / "train.ids")
    text = (entry / "meta.json").read_text().split("\n", 1)[1]
    meta = json.loads(text)
    meta["sha256"]["train.ids"] = hashlib.sha256(ids.tobytes()).hexdigest()
    text = json.dumps(meta)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (entry / "meta.json").write_text(f"{digest}\n{text}")
    with pytest.warns(BpttWarning, match="ids outside the vocabulary"):
        assert load_prepared(entry.name) is None


@pytest.mark.parametrize("change", ["grows", "shrinks", "changes", "turns white"])
@pytest.mark.parametrize("reading", ["stream", "lines"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    corpus: Make, story: str, tmp_path: Path, change: str, reading: str
) -> None:
    """The cache held other text than its fingerprint said, for whoever came next."""
    text, path = corpus(story * 5), tmp_path / "text.txt"
    other = {
        "grows": story * 5 + "more\n",
        "shrinks": story * 4,
        "changes": story * 3 + "X" + story * 2,
        "turns white": " " * 900,
    }[change]

    def interfere(message: str, share: float | None) -> None:
        if message == "splitting the text":
            path.write_text(other, encoding="utf-8")

    with pytest.raises(CorpusError, match=r"text.txt (changed while it was read|holds no text)"):
        prepare(text, reading=reading, progress=interfere)
    assert list((cache_directory() / "texts").iterdir()) == []
    assert prepare(corpus(story * 5), reading=reading).train.ids.size > 0


def test_validating_on_what_is_trained_on_is_warned_of(corpus: Make, story: str) -> None:
    with pytest.warns(BpttWarning, match=r"other.txt holds the same text as text.txt"):
        prepare(corpus(story), valid_corpus=corpus(story, "other.txt"))


def _prepare_in_a_process(path: str) -> list[int]:
    text = prepare(open_corpus([path]), level="word", reading="sentences")
    return [int(i) for i in text.train.ids]


def test_processes_at_the_same_time_all_succeed(corpus: Make, story: str, tmp_path: Path) -> None:
    corpus(story)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        results = list(pool.map(_prepare_in_a_process, [str(tmp_path / "text.txt")] * 3))
    assert results[0] == results[1] == results[2]
    assert len(list((cache_directory() / "texts").iterdir())) == 1


def test_who_comes_second_takes_what_is_there(
    corpus: Make, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(corpus(story))
    monkeypatch.setattr(module, "find", lambda entry: None)  # not yet there when looked for
    assert same(prepare(corpus(story)), first)
    assert len(list((cache_directory() / "texts").iterdir())) == 1


def test_a_full_disk_leaves_nothing_behind(
    corpus: Make, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bptt._src.data.tokens.TokenWriter._write_ids", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(corpus(story))
    assert list((cache_directory() / "texts").iterdir()) == []


def test_what_dead_processes_left_is_removed(corpus: Make, story: str) -> None:
    entries = cache_directory() / "texts"
    old, new = entries / ".building-old", entries / ".building-new"
    for place in (old, new):
        place.mkdir(parents=True)
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    prepare(corpus(story))
    assert new.exists()
    assert not old.exists()


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, corpus: Make, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="BPTT_CACHE"):
        prepare(corpus(story))
    with pytest.raises(ConfigError, match="BPTT_CACHE"):
        prepare(corpus(story), cache=tmp_path / "file")


def test_what_is_in_the_cache_is_found_where_nothing_can_be_written(
    corpus: Make, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, built_in = prepare(corpus(story)), open_corpus()
    text = corpus(story)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for function in ("os.mkdir", "tempfile.TemporaryFile", "tempfile.mkdtemp", "os.rename"):
        monkeypatch.setattr(function, refuse)
    found = load_prepared(first.fingerprint)
    assert found is not None
    assert same(found, first)
    assert same(prepare(text), first)
    assert load_prepared("0" * 64) is None
    assert open_corpus().name == built_in.name
    with pytest.raises(ConfigError, match="Read-only"):
        prepare(text, level="char")


def test_the_cache_is_the_users_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BPTT_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "user" / name)
    assert cache_directory() == tmp_path / "user" / "bptt"


# Size


def test_a_large_vocabulary_takes_wider_ids(corpus: Make) -> None:
    text = " ".join(f"w{i}" for i in range(70_000)) + "\n" + "w1 " * 20_000
    wide = prepare(corpus(text), vocabulary=80_000)
    assert wide.train.ids.dtype == np.uint32
    assert int(wide.train.ids.max()) == wide.tokenizer.size - 1 > 65_535
    assert prepare(corpus(text)).train.ids.dtype == np.uint16


def test_the_text_is_never_whole_in_memory(corpus: Make, story: str) -> None:
    import tracemalloc

    text = corpus(story * 400)  # 9 MB
    options = {"level": "byte", "reading": "stream"}
    tracemalloc.start()
    try:
        prepare(text, **options)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


def test_progress_is_reported(corpus: Make, story: str) -> None:
    seen: list[tuple[str, float | None]] = []
    prepare(corpus(story), progress=lambda message, share: seen.append((message, share)))
    messages = list(dict.fromkeys(message for message, _ in seen))
    assert messages == [
        "reading the text",
        "splitting the text",
        "making the vocabulary",
        "encoding",
        "encoding what is held out",
    ]
    assert all(share is None or 0 <= share <= 1 for _, share in seen)


# Encoding for evaluation


@pytest.mark.parametrize("level", LEVELS)
def test_a_corpus_is_encoded_as_its_text(corpus: Make, story: str, level: str) -> None:
    tokenizer = Tokenizer.train([story], level=level, sentences=True)
    for reading in ("stream", "sentences", "lines"):
        from_file = encode_corpus(corpus(story), tokenizer, reading=reading)
        from_text = encode_text(story, tokenizer, reading=reading)
        assert from_file.ids.tolist() == from_text.ids.tolist()
        assert from_file.characters == from_text.characters
        if reading == "stream":
            assert from_file.ids.tolist() == tokenizer.encode(story)
            assert from_file.characters == len(story)
        else:
            assert sequences(from_file) == sequences(from_text)
            assert len("".join(story.split())) < from_file.characters < len(story)
        assert from_file.words == len(story.split())


def test_text_without_tokens_is_refused() -> None:
    tokenizer = Tokenizer.train(["a"], level="word", sentences=True)
    for reading in ("stream", "sentences", "lines"):
        with pytest.raises(CorpusError, match="no token"):
            encode_text(" \n ", tokenizer, reading=reading)


FIRST = {
    # text: level, first_characters, first_words
    "a known word": ("the end of it", "word", 3, 1),
    "an unknown word": ("another end of it", "word", 7, 1),
    "white space before it": ("  \t the end", "word", 7, 1),
    "a word that goes on": ("end, of it", "word", 3, 0),
    "a newline": ("\nthe end", "word", 1, 0),
    "the only word": ("the", "word", 3, 1),
    "a character": ("the end", "char", 1, 0),
    "a character that is a word": ("a the end", "char", 1, 1),
    "an unknown character": ("% the", "char", 1, 1),
    "a space": (" the", "char", 1, 0),
    "a byte": ("the end", "byte", 1, 0),
    "a byte that is a word": ("a\nthe", "byte", 1, 1),
    "a part of a character": ("é the", "byte", 0, 0),
    "a merged word": ("the end", "bpe", 3, 1),
    "a merged word after a space": (" the end", "bpe", 4, 1),
    "the beginning of a word": ("thee end", "bpe", 3, 0),
}


@pytest.mark.parametrize(("text", "level", "characters", "words"), FIRST.values(), ids=FIRST)
def test_what_the_first_token_of_a_stream_completes(
    text: str, level: str, characters: int, words: int
) -> None:
    vocabulary = 300 if level == "bpe" else None
    tokenizer = Tokenizer.train(
        ["the end of it, " * 9, "a\n"], level=level, vocabulary=vocabulary, sentences=True
    )
    if level == "word":  # with newlines
        tokenizer = Tokenizer.train(["the end of it, \n"], level="word")
    tokens = encode_text(text, tokenizer, reading="stream")
    assert (tokens.first_characters, tokens.first_words) == (characters, words)


def test_sequences_have_no_first_token_of_their_text() -> None:
    tokenizer = Tokenizer.train(["the end"], level="word", sentences=True)
    for reading in ("sentences", "lines"):
        tokens = encode_text("the end", tokenizer, reading=reading)
        assert (tokens.first_characters, tokens.first_words) == (0, 0)


@pytest.mark.parametrize(("text", "words"), [("a" * 7 + " b c", 1), ("a" * 12 + " b c", 0)])
def test_the_first_token_may_end_with_its_chunk(
    text: str, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt._src.data.chunks.SIZE", 7)
    tokens = encode_text(text, Tokenizer.train(["a"], level="word"), reading="stream")
    assert (tokens.first_characters, tokens.first_words) == (7, words)


def test_words_are_counted_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bptt._src.data.chunks.SIZE", 7)
    tokenizer = Tokenizer.train(["a"], level="byte")
    text = "aaaaaaaaaaaaaaaaaaaaaa bb  c\n\ndddddddddd eeeeeeeeeeeeeeeeeeeeeeee"
    assert encode_text(text, tokenizer, reading="stream").words == len(text.split())
