"""A text as streams, for a loop of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bptt.data import Tokens, streams
from bptt.errors import ConfigError, CorpusError


@given(st.integers(2, 90), st.integers(1, 7), st.integers(1, 9), st.integers(1, 4))
def test_all_processes_together_read_every_stream_once(count, batch, steps, size):
    if count - 1 < batch or batch < size:
        return
    ids = torch.arange(count)
    length = (count - 1) // batch
    columns = {}
    for rank in range(size):
        windows = list(streams(ids, batch=batch, steps=steps, rank=rank, world_size=size))
        assert [len(x) for x, _ in windows[:-1]] == [steps] * (len(windows) - 1)
        x, y = (torch.cat(part) for part in zip(*windows, strict=True))
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1)  # the token after each
        columns.update(zip(range(rank, batch, size), x.T, strict=True))
    assert sorted(columns) == list(range(batch))
    for number, column in columns.items():
        assert torch.equal(column, ids[number * length :][:length])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_whatever_holds_the_ids(dtype):
    ids = torch.randint(200, (50,)).to(dtype)
    kinds = [ids, ids.numpy(), Tokens(ids.numpy().astype(np.uint16), None, 0, 0, 0)]
    read = [[*streams(kind, batch=3, steps=5)] for kind in kinds]
    for found in read[1:]:
        for pair, other in zip(found, read[0], strict=True):
            assert all(map(torch.equal, pair, other))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"batch": 0}, ConfigError, "batch must be at least 1, got 0"),
        ({"steps": 0}, ConfigError, "steps must be at least 1, got 0"),
        ({"batch": 30}, CorpusError, "30 tokens are too few for 30 streams"),
        ({"rank": 0, "world_size": 4}, ConfigError, "leaves 1 of the 4 processes"),
        ({"tokens": torch.zeros(3, 10, dtype=torch.int64)}, ConfigError, r"int64 of \[3, 10\]"),
        ({"tokens": torch.zeros(30)}, ConfigError, "float32"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(options, error, said):
    asked = {"tokens": torch.arange(30), "batch": 3, "steps": 5, **options}
    with pytest.raises(error, match=said):
        streams(asked.pop("tokens"), **asked)
