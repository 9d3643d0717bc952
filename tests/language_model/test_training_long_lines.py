"""Lines too long for one update: windows whose state is carried, resumed to the same bits."""

from __future__ import annotations

import pytest
import torch

from bptt.errors import BpttWarning
from bptt.language_model import resume, start


def test_a_long_line_is_learnt_in_windows_and_resumed_inside(small, tmp_path, story, monkeypatch):
    monkeypatch.setattr("bptt._src.data.readers.MOST", 1)
    monkeypatch.setattr("bptt._src.data.readers.MOST_OF_FEW", 40)
    path = tmp_path / "long.txt"
    path.write_text("\n".join(story(40, seed).replace("\n", " ") for seed in range(6)) + "\n")
    config = small.changed(corpus=(str(path),), reading="lines", epochs=2)
    with pytest.warns(BpttWarning, match="5 sequences of more than 40 tokens .* windows of 40"):
        whole = start(config, tmp_path / "whole")
    states = []
    while whole.reader.epoch < 2:
        for batch in whole.reader:
            before = whole.stream.state
            whole.update(batch)
            states.append((batch.fresh, before))
    assert len(states) == 2 * 5 * 6  # 201 tokens to predict
    assert [fresh for fresh, _ in states].count(True) == 2 * 5

    with pytest.warns(BpttWarning, match="5 sequences"):
        part = start(config, tmp_path / "part")
    part.fit(lambda: "stop" if part.progress.updates == 9 else None)  # inside the second line
    part.close()
    with pytest.warns(BpttWarning, match="5 sequences"):
        part = resume(tmp_path / "part")
    assert not next(iter(part.reader)).fresh
    part.reader.position -= 1
    while part.reader.epoch < 2:
        for batch in part.reader:
            part.update(batch)
    for a, b in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(a, b)
