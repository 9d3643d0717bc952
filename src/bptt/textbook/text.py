"""Text as the model takes it: a list of words, and sentences of their ids."""

import re
from collections import Counter
from pathlib import Path


def sentence_data(
    text: str | Path, word_dim: int | None = None
) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Return (words, X, Y) of a text with one sentence a line, as ``Model.train`` takes them.

    A sentence is lower-cased, split into words and punctuation marks, and put between ``<s>`` and
    ``</s>``; x is all of it but the last word, y all but the first. Empty lines are skipped.

    Args:
        text: the text, or the path of a file of UTF-8, as a ``Path``.
        word_dim: the most words to keep, those marks included: the most frequent ones, the earlier
            of two that are as frequent. All others become ``<unk>``. None keeps every word.

    Returns:
        The words, of which word i has the id i, then the inputs and the targets of each sentence.

    Raises:
        ValueError: if the text has no word or is the name of a file, or word_dim is below 4, which
            leaves no word.

    >>> words, X, Y = sentence_data("John came in.\\nMary saw John.")
    >>> words
    ['<s>', '</s>', '<unk>', 'john', '.', 'came', 'in', 'mary', 'saw']
    >>> X[0], Y[0]
    ([0, 3, 5, 6, 4], [3, 5, 6, 4, 1])
    """
    if isinstance(text, Path):
        text = text.read_text("utf-8")
    elif "\n" not in text and len(text) < 256 and Path(text).is_file():
        raise ValueError(f"expected a text, got the name of a file: Path({text!r}) reads it")
    lines = [re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", line.lower()) for line in text.splitlines()]
    if word_dim is not None and word_dim < 4:
        raise ValueError(f"{word_dim=} leaves no word beside <s>, </s> and <unk>; use 4 or more")
    if not any(lines):
        raise ValueError(f"no word in a text of {len(text)} characters; give one sentence a line")
    count = Counter(word for line in lines for word in line)
    kept = count.most_common(None if word_dim is None else word_dim - 3)
    words = ["<s>", "</s>", "<unk>", *(word for word, _ in kept)]
    ids = {word: i for i, word in enumerate(words)}
    sentences = [[0, *(ids.get(word, 2) for word in line), 1] for line in lines if line]
    return words, [s[:-1] for s in sentences], [s[1:] for s in sentences]
