"""Random calls of all kinds, some in the quick tier and thousands in the long one."""

import pytest
from fuzz.worker import fuzz

KINDS = {
    "modules": "fuzzed calls of the modules against torch.nn and the twin",
    "credits": "fuzzed credits, carries, resets and memories against single steps of torch.nn",
    "readouts": "fuzzed readout losses against torch's and the twin's",
    "flows": "fuzzed gradient flows against autograd and the twin",
}


@pytest.mark.parametrize("kind", KINDS)
def test_some_hundreds(kind):
    fuzz(kind, 0, 100)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 21000, 1000))
def test_thousands(first, survived):
    for kind, count in {"modules": 400, "credits": 200, "readouts": 300, "flows": 100}.items():
        fuzz(kind, first, count)
        survived(KINDS[kind], count)
