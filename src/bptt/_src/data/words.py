"""Division of text into words, and joining of words into readable text."""

from __future__ import annotations

UNKNOWN, START, END = "<unk>", "<s>", "</s>"

# Invisible characters that end no word (UAX 29, rule WB4): joiners, soft hyphens, direction marks.
# Combining marks and variation selectors are \w; a zero width space does end a word.
_FORMAT = r"[\p{Cf}&&[^\u200b]]"
_IN_WORD = rf"(?:\w|{_FORMAT})"

_PARTS = (
    r"<unk>",  # in texts prepared by others, such as WikiText-2
    r"@[-,.]@",  # which also write half @-@ way, 1 @,@ 000 and 3 @.@ 14
    r"(?<=\s)'(?:s|t|d|m|ll|re|ve)(?!\w)",  # and the boy 's
    rf"\d+(?:[.,]\d+)+{_FORMAT}*",
    rf"{_FORMAT}*\w{_IN_WORD}*(?:['’-]\w{_IN_WORD}*)*",  # know't, o'clock, half-way
    # --, ..., ::, >>> and rulers are one token, unless an emoji begins with the last: #️⃣
    rf"([-.:=~*#<>])\1*(?!\p{{M}}|{_FORMAT})",
    rf"{_FORMAT}*(?![\w\s])\X{_FORMAT}*",  # one user-perceived character: 👨‍👩‍👧, 👍🏽, ❤️, 🇫🇷
    rf"{_FORMAT}+",
)
PATTERN = "|".join(_PARTS)
"""A word if the text is read as sentences: a newline is white space."""
STREAM_PATTERN = r"\n|" + PATTERN
"""A word if the text is read as a stream: a newline is a word of its own."""

SPACED = r"(?!</?s>(?!\S))\S+|\S"
"""A word of a text that was divided before, at white space; a mark of sentences is none."""
STREAM_SPACED = r"\n|\S+"
"""The same in a stream, without marks: a newline is the token that others write ``<eos>``."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split(" "))


_CLOSING = _set(". ... , ; : :: ! ? ) ] } % ’ ” … » @-@ @,@ @.@ -- / \u200b \n")
_OPENING = _set("( [ { ‘ “ « @-@ @,@ @.@ -- / \u200b \n")
_CLITICS = _set("'s 't 'd 'm 'll 're 've n't")
_AS_WRITTEN = {"@-@": "-", "@,@": ",", "@.@": "."}


class Joiner:
    """Joins words, one at a time, with spaces where a reader expects them.

    Each word is written without knowing the next one, so text can be shown as it is generated.

    Example:
        >>> joiner = Joiner()
        >>> "".join(map(joiner.add, ["Soft", "!", "who", "(", "'", "sir", "'", ")", "?"]))
        "Soft! who ('sir')?"
    """

    def __init__(self) -> None:
        self._glued = True  # no space before the next word
        self._last = ""
        self._open: set[str] = set()  # straight quotes that were opened and not closed

    def add(self, word: str) -> str:
        """The text that one more word adds: the word, preceded by a space where one belongs.

        Args:
            word: The next word, punctuation mark or newline.

        Returns:
            The text to append.
        """
        if word == "\n" == self._last:
            self._open.clear()  # a quotation ends with its paragraph, even if not closed
        closes = word in self._open
        opens = word in ("'", '"') and not closes
        space = "" if self._glued or closes or word in _CLOSING or word in _CLITICS else " "
        self._glued = opens or word in _OPENING
        if opens:
            self._open.add(word)
        elif closes:
            self._open.discard(word)
        self._last = word
        return space + _AS_WRITTEN.get(word, word)


class Spacer:
    r"""Joins the words of a text that was divided before: by a space, but not at a line's ends.

    Example:
        >>> spacer = Spacer()
        >>> print("".join(map(spacer.add, ["the", "model", "'s", "\n", "loss"])))
        the model 's
        loss
    """

    def __init__(self) -> None:
        self._glued = True  # no space before the next word

    def add(self, word: str) -> str:
        """The text that one more word adds.

        Args:
            word: The next word, or newline.

        Returns:
            The text to append.
        """
        space = "" if self._glued or word == "\n" else " "
        self._glued = word == "\n"
        return space + word
