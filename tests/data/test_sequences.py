from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt._src.data.sequences import lines, sentences


def test_a_blank_line_ends_a_sentence_and_a_newline_does_not() -> None:
    text = "A title\n \t\nThe first\nsentence. The second one!\n\n\nNo end"
    assert list(sentences([text])) == [
        "A title",
        "The first\nsentence.",
        "The second one!",
        "No end",
    ]


def test_quotes_stay_with_their_sentences() -> None:
    text = (
        "'You must follow closely. I shall have to controvert one or two ideas.' He paused. "
        "'But wait a moment. Can a cube exist?' said Filby. 'It's simple.' Mr. Smith left."
    )
    assert list(sentences([text])) == [
        "'You must follow closely.",
        "I shall have to controvert one or two ideas.'",
        "He paused.",
        "'But wait a moment.",
        "Can a cube exist?' said Filby.",
        "'It's simple.'",
        "Mr. Smith left.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "今天天气很好。|我们去公园吧！|你想去吗？！|我不知道。",
        "今日はいい天気です。|公園に行きましょう。|分かりません",
        "今天天气很好。| 我们去公园吧！",
        "他说：“你好。”|「はい。」|ｲｲ｡|次",
        "Θέλεις να πάμε;| Δεν ξέρω; όχι.".replace("; ό", ";| ό"),
        "Not here; nor here.",
        "3.5，好。|It ends. |Again。",
    ],
)
def test_other_full_stops_end_sentences(text: str) -> None:
    expected = [part.strip() for part in text.split("|")]
    assert list(sentences([text.replace("|", "")])) == expected
    assert list(sentences(text.replace("|", ""))) == expected  # one by one


def test_wikitext_numbers_are_not_split() -> None:
    text = "It weighs 2 @.@ 5 kg and costs 1 @,@ 000 . Next one ."
    assert list(sentences([text])) == text.replace("000 . ", "000 .|").split("|")


@pytest.mark.parametrize("function", [sentences, lines])
@given(text=st.text("aB.!?'\" \n", max_size=200), size=st.integers(1, 50))
@settings(deadline=None)
def test_nothing_is_lost_however_the_text_is_cut(function: object, text: str, size: int) -> None:
    whole = list(function([text]))  # type: ignore[operator]
    assert whole == list(function(text[i : i + size] for i in range(0, len(text), size)))  # type: ignore[operator]
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert all(part and not part.isspace() for part in whole)


def test_a_paragraph_without_end_comes_in_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bptt._src.data.sequences.LONGEST", 1000)
    text = "One sentence is here. " * 500
    found = list(sentences(text[i : i + 99] for i in range(0, len(text), 99)))
    assert found == ["One sentence is here."] * 500
    assert "".join(sentences(["x" * 5000, "y" * 10])) == "x" * 5000 + "y" * 10


def test_lines_keep_their_indentation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(lines(["  a\n\n \nb", "c\nd"])) == ["  a", "bc", "d"]
    monkeypatch.setattr("bptt._src.data.sequences.LONGEST", 4)
    assert list(lines(["aaa", "bbb", "cc\nd"])) == ["aaab", "bbcc", "d"]
    assert list(lines(["a b c d"])) == ["a b", " c d"]


def test_no_sentences_are_glued_where_a_long_text_is_cut() -> None:
    """The white space between two pieces was lost, and with it the boundary."""
    text = "".join(f"Alpha beta w{i}.\n" for i in range(40_000))
    pieces = (text[i : i + 65_536] for i in range(0, len(text), 65_536))
    found = list(sentences(pieces))
    assert found == text.splitlines()


@pytest.mark.parametrize("function", [sentences, lines])
@given(
    text=st.text("aB.?' \n", min_size=30, max_size=300),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    longest=st.integers(2, 40),
)
@settings(deadline=None)
def test_long_texts_do_not_depend_on_their_pieces(
    function: Callable[[Iterable[str]], Iterator[str]], text: str, sizes: list[int], longest: int
) -> None:
    pieces, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(text):
            break
        pieces.append(text[start : start + size])
        start += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt._src.data.sequences.LONGEST", longest)
        whole = list(function([text]))
        assert list(function(pieces)) == whole
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert all(len(part) <= longest for part in whole)


@pytest.mark.parametrize("function", [sentences, lines])
@pytest.mark.parametrize("text", ["x", "some words ", "One is here. ", "a\n"])
def test_little_of_a_text_is_held(
    function: Callable[[Iterable[str]], Iterator[str]], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt._src.data.sequences.LONGEST", 1000)
    taken = given = 0

    def pieces() -> Iterator[str]:
        nonlocal taken
        for _ in range(100):
            yield text * 20
            taken += len("".join(text.split())) * 20

    for part in function(pieces()):
        given += len("".join(part.split()))
        assert taken - given <= 1000
    assert taken == given
