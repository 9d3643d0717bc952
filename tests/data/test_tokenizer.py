from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from bptt._src.data.chunks import chunks
from bptt.data import LEVELS, Tokenizer
from bptt.errors import CheckpointError, ConfigError, CorpusError

SENTENCE = "We know't, we know't: the half-way house, at 1,000 o'clock (sic).\n"
TRAINED = {
    (level, sentences): Tokenizer.train([SENTENCE * 3], level=level, sentences=sentences)
    for level in LEVELS
    for sentences in (False, True)
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def words(text: str, tokenizer: Tokenizer | None = None) -> list[str]:
    tokenizer = tokenizer or Tokenizer.train([text], level="word")
    return [tokenizer.token(i) for i in tokenizer.encode(text)]


# Round trips


@pytest.mark.parametrize("level", ["byte", "bpe"])
@given(text=TEXT)
@settings(deadline=None)
def test_bytes_and_bpe_lose_nothing(level: str, text: str) -> None:
    tokenizer = TRAINED[level, True]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.start, tokenizer.end} & set(ids)


@given(text=TEXT)
@settings(deadline=None)
def test_characters_lose_nothing_that_was_in_the_vocabulary(text: str) -> None:
    tokenizer = Tokenizer.train([text, "x"], level="char", sentences=True)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


@pytest.mark.parametrize("level", ["char", "byte"])
@pytest.mark.parametrize("lowercase", [False, True])
@given(text=TEXT)
@settings(deadline=None)
def test_our_shortcuts_give_what_the_library_gives(level: str, lowercase: bool, text: str) -> None:
    tokenizer = Tokenizer.train([SENTENCE], level=level, lowercase=lowercase)
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.encode(text) == library.encode(text).ids


@pytest.mark.parametrize(("level", "sentences"), TRAINED)
@given(text=TEXT, data=st.data())
@settings(deadline=None)
def test_decoding_as_it_comes_is_decoding(
    level: str, sentences: bool, text: str, data: st.DataObject
) -> None:
    tokenizer = TRAINED[level, sentences]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    for these in (ids, tokenizer.encode(text)):
        parts = list(tokenizer.decode_stream(iter(these)))
        assert "".join(parts) == tokenizer.decode(these)
        assert len(parts) in (len(these), len(these) + 1)


def test_half_a_character_is_not_shown() -> None:
    tokenizer = TRAINED["byte", False]
    ids = tokenizer.encode("é€")
    assert list(tokenizer.decode_stream(ids)) == ["", "é", "", "", "€"]
    assert list(tokenizer.decode_stream(ids[:-1])) == ["", "é", "", "", "\ufffd"]


@pytest.mark.parametrize("level", LEVELS)
def test_lone_surrogates_do_not_matter(level: str) -> None:
    tokenizer = Tokenizer.train(["a \ufffd b \ud800 c"], level=level)
    assert tokenizer.encode("a \ud800 b") == tokenizer.encode("a \ufffd b")


def test_bytes_are_their_own_ids() -> None:
    tokenizer = TRAINED["byte", True]
    assert tokenizer.encode("Aé") == list("Aé".encode())
    assert (tokenizer.size, tokenizer.start, tokenizer.end, tokenizer.unknown) == (
        258,
        256,
        257,
        None,
    )


# Words


MARKS = "We know't : o'clock , half-way -- ' sir ' ( 3.14 ) ... 1,000 ; \n \n ' Tis naïve हिन्दी"


def test_how_text_falls_into_words() -> None:
    assert words("We know't: o'clock, half-way -- 'sir' (3.14)... 1,000;\n\n'Tis naïve हिन्दी") == (
        MARKS.split(" ")
    )


@pytest.mark.parametrize(
    "text",
    [
        "می‌خواهم بروم",  # a joiner keeps two halves apart within a word
        "hi 👨‍👩‍👧 bye",
        "ok 👍🏽 fine",
        "I ❤️ it",
        "in 🇫🇷 now",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f wins",
        "press 1️⃣ or #️⃣",
        "a soft\u00adhyphen\u00ad stays",
        "\u200fשלום\u200f עולם 3.5\u200e",
        "e\u0301tude हिन्दी 가나",
        "zero\u200bwidth",
        "\u2067left\u2069 , x",
    ],
)
@pytest.mark.parametrize("sentences", [False, True])
def test_what_is_invisible_ends_no_word_and_comes_back(text: str, sentences: bool) -> None:
    tokenizer = Tokenizer.train([text], level="word", sentences=sentences)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(" ,", ",")
    assert tokenizer.unknown not in tokenizer.encode(text)
    if "\u200b" not in text and "#" not in text and " ," not in text:
        assert words(text) == text.split()


def test_what_ends_a_word_as_ever() -> None:
    expected = "3.14 th ### a-b - x *** 1,000 ."
    assert words("3.14th ### a-b- x*** 1,000.") == expected.split(" ")


def test_wikitext_is_taken_as_it_is() -> None:
    text = " the <unk> co @-@ op 's 3 @.@ 5 , and 1 @,@ 000 . \n"
    tokenizer = Tokenizer.train([text], level="word")
    ids = tokenizer.encode(text)
    assert [tokenizer.token(i) for i in ids] == [*text.split(), "\n"]
    assert ids[1] == tokenizer.unknown
    assert list(ids).count(tokenizer.unknown) == 1
    assert tokenizer.decode(ids) == "the <unk> co-op's 3.5, and 1,000.\n"


def test_the_vocabulary_is_the_most_frequent_words_ties_by_text() -> None:
    tokenizer = Tokenizer.train(
        ["b a\nd c a c <unk> <unk> <unk> <unk>"], level="word", vocabulary=5
    )
    assert [tokenizer.token(i) for i in range(tokenizer.size)] == ["<unk>", "a", "c", "\n", "b"]
    assert tokenizer.encode("d a") == [0, 1]


def test_a_newline_is_white_space_in_sentences() -> None:
    assert "\n" in words(SENTENCE, TRAINED["word", False])
    assert "\n" not in words(SENTENCE, TRAINED["word", True])


@pytest.mark.parametrize(
    "text",
    [
        "Soft! who comes here? (No one; 'tis I, said: he.)",
        'He said "stay, sir" and "go".\n\nShe: "well" [all].',
        "First Citizen:\nWe know't, o'clock.\n\nAll:\nAway--away!",
        "(a) {b} [c] 5% and/or d...",
    ],
)
def test_words_are_joined_as_they_were_written(text: str) -> None:
    tokenizer = Tokenizer.train([text], level="word")
    text = text.replace("'tis", "it is")
    tokenizer = Tokenizer.train([text], level="word")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_forgotten_quote_does_not_outlive_its_paragraph() -> None:
    text = 'a "b\n\nc "d" e'
    tokenizer = Tokenizer.train([text], level="word")
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Special tokens


@pytest.mark.parametrize("level", LEVELS)
def test_special_tokens_in_a_text_are_only_characters(level: str) -> None:
    text = "<s> a </s> <s><s></s></s> b <unk> <s> </s>\n" * 50
    tokenizer = Tokenizer.train([text], level=level, sentences=True)
    again = Tokenizer.from_json(tokenizer.to_json())
    for each in (tokenizer, again):
        ids = each.encode(text)
        assert not {each.start, each.end} & set(ids)
        assert (each.unknown in ids) == (level in ("word", "whitespace"))
        assert each.start is not None
        assert each.end is not None
        assert each.decode([each.start, *ids, each.end]) == each.decode(ids)
    assert TRAINED[level, False].start is None
    assert TRAINED[level, False].end is None


def test_lower_case_is_part_of_the_file() -> None:
    for level in LEVELS:
        tokenizer = Tokenizer.train(["ÀB ab"], level=level, lowercase=True)
        again = Tokenizer.from_json(tokenizer.to_json())
        assert again.decode(again.encode("ÀB ab")) == "àb ab"


# Training


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_same_text_gives_the_same_tokenizer(level: str, lowercase: bool, story: str) -> None:
    whole = Tokenizer.train([story], level=level, lowercase=lowercase)
    cut = Tokenizer.train(
        (story[i : i + 777] for i in range(0, len(story), 777)), level=level, lowercase=lowercase
    )
    assert whole.to_json() == cut.to_json()


def test_the_size_of_the_vocabulary(story: str) -> None:
    assert Tokenizer.train([story], level="word", vocabulary=20, sentences=True).size == 20
    assert Tokenizer.train([story], level="char", vocabulary=20, sentences=True).size == 20
    assert Tokenizer.train([story], level="bpe", vocabulary=300, sentences=True).size == 300
    assert Tokenizer.train([story], level="char").size == len(set(story)) + 1
    characters = Tokenizer.train(["aab\n"], level="char", vocabulary=2)
    assert characters.encode("ab") == [1, 0]
    assert characters.decode([1, 0]) == "a\ufffd"
    assert Tokenizer.train([f"w{i}" for i in range(9000)] + [" "], level="word").size <= 8000


def test_options_that_do_not_fit_are_refused() -> None:
    for options, match in (
        ({"level": "letter"}, "word, whitespace, char, byte, bpe"),
        ({"level": "byte", "vocabulary": 100}, "256 bytes"),
        ({"level": "word", "vocabulary": 1}, "at least 2"),
        ({"level": "bpe", "vocabulary": 258, "sentences": True}, "at least 259"),
    ):
        with pytest.raises(ConfigError, match=match):
            Tokenizer.train(["text"], **options)  # type: ignore[arg-type]
    for level in ("word", "char"):
        with pytest.raises(CorpusError, match="no text"):
            Tokenizer.train([], level=level)


def test_an_error_while_the_text_is_read_comes_through() -> None:
    def pieces():  # type: ignore[no-untyped-def]
        yield "text"
        raise CorpusError("the disk is gone")

    for level in ("word", "char", "bpe"):
        with pytest.raises(CorpusError, match="the disk is gone"):
            Tokenizer.train(pieces(), level=level)


# Files


@pytest.mark.parametrize(("level", "sentences"), TRAINED)
def test_what_is_saved_is_loaded(tmp_path: Path, level: str, sentences: bool) -> None:
    tokenizer = TRAINED[level, sentences]
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == tokenizer.to_json()
    for name in ("level", "size", "start", "end", "unknown"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.encode(SENTENCE) == tokenizer.encode(SENTENCE)
    assert list(tmp_path.glob("*.json")) == list(tmp_path.glob("*token*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: text.replace('"WordLevel"', '"Nonsense"'),
        lambda text: text.replace('"unk_token":"<unk>"', '"unk_token":"<gone>"'),
        lambda text: text.replace('"vocab"', '"vocabulary"'),
        lambda text: text.replace("[^", "[[[^"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    text = TRAINED["word", False].to_json()
    compact = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    path = tmp_path / "tokenizer.json"
    path.write_text(damage(compact), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"tokenizer.json is no complete") as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path / "binary")


def test_tokenizers_of_others_work(tmp_path: Path) -> None:
    foreign = tokenizers.Tokenizer(
        models.WordPiece({"[UNK]": 0, "half": 1, "##way": 2}, unk_token="[UNK]")
    )
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign.decoder = decoders.WordPiece()
    foreign.add_special_tokens(["[CLS]", "[SEP]"])
    foreign.enable_truncation(2)
    foreign.enable_padding(length=50)
    tokenizer = Tokenizer.from_json(foreign.to_str())
    assert (tokenizer.level, tokenizer.size) == ("bpe", 5)
    assert (tokenizer.unknown, tokenizer.start, tokenizer.end) == (0, 3, 4)
    ids = tokenizer.encode("halfway half [CLS]")
    assert ids[:3] == [1, 2, 1]
    assert tokenizer.start not in ids
    assert (
        tokenizer.decode([1, 2, 1]) == "".join(tokenizer.decode_stream([1, 2, 1])) == "halfway half"
    )


def test_an_id_that_is_none_is_refused() -> None:
    for tokenizer in TRAINED.values():
        for i in (-1, tokenizer.size):
            with pytest.raises(IndexError, match="vocabulary's size"):
                tokenizer.decode([i])


# Chunks


@pytest.mark.parametrize("level", LEVELS)
@given(text=st.text("ab'  \n\n9", max_size=200), size=st.integers(1, 30))
@settings(deadline=None)
def test_tokens_do_not_depend_on_how_a_text_is_cut(level: str, text: str, size: int) -> None:
    # White space that merges shows a cut inside of it.
    tokenizer = Tokenizer.train(["a  b\n\n\nb   \n  a" * 9], level=level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt._src.data.chunks.SIZE", 30)
        parts = list(chunks(text[i : i + size] for i in range(0, len(text), size)))
    assert "".join(parts) == text
    if all(part[0].isspace() for part in parts[1:]):
        assert np.concatenate([[], *tokenizer.encode_batch(parts)]).tolist() == tokenizer.encode(
            text
        )


@pytest.mark.parametrize("place", range(20, 32))
def test_a_chunk_never_ends_inside_white_space(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bptt._src.data.chunks.SIZE", 30)
    text = "x" * place + "\n" * 6 + "y" * 40
    assert next(chunks([text])) == "x" * min(place, 30)


def test_a_prefix_covers_its_tokens() -> None:
    for level in LEVELS:
        tokenizer = TRAINED[level, False]
        for n in range(12):
            place = tokenizer.prefix(SENTENCE, n)
            assert tokenizer.encode(SENTENCE[:place]) == tokenizer.encode(SENTENCE)[:n]
        assert tokenizer.prefix(SENTENCE, 10_000) == len(SENTENCE)
