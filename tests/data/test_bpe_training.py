"""The vocabulary of byte-pair encoding: of any text, soon, and Ctrl-C is heard."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from bptt._src.data import vocabulary as module
from bptt.data import Tokenizer
from bptt.errors import BpttWarning


def test_text_without_white_space_is_trained_on_in_parts() -> None:
    draw = random.Random(0)
    text = "".join(draw.choices("ACGT", k=60_000))
    started = time.process_time()
    tokenizer = Tokenizer.train([text], level="bpe", vocabulary=1000)
    assert time.process_time() - started < 2  # not in parts 5
    ids = tokenizer.encode(text)
    assert len(ids) < len(text) / 3
    assert tokenizer.decode(ids) == text
    assert all(len(part) <= 256 for part in module._Feed([text[:3000]]))
    assert "".join(module._Feed([text, "a b" * 300])) == text + "a b" * 300
    plain = "words as they are, " * 50
    assert list(module._Feed([plain])) == [plain]


def test_how_long_it_takes_is_said_where_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1e-3)
    monkeypatch.setattr(module, "_UNBROKEN", module.re.compile(r"\S{256}"))
    text = "".join(random.Random(0).choices("ACGT", k=100_000))
    with pytest.warns(
        BpttWarning,
        match=r"99,840 characters without .* take 100 seconds; the levels char and byte",
    ):
        Tokenizer.train([text], level="bpe", vocabulary=1000)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    class Stubborn:
        """Takes no notice of anything, as the library does."""

        def __init__(self, backend: object) -> None:
            pass

        def train_from_iterator(self, texts: object, trainer: object) -> None:
            is_over.wait(30)

    backend = module.backend_of("bpe", module.word_model(["<unk>"]), False)
    monkeypatch.setattr(module, "Backend", Stubborn)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        module.train_bpe(backend, ["text"], 300, [])
    assert time.monotonic() - started < 20
    is_over.set()
