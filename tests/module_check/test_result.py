"""The table, and what else a result offers."""

import json

import pytest
import torch
from module_check import broken
from torch import nn

import bptt
from bptt.checks import ModuleCheck


@pytest.fixture(scope="module")
def wrong() -> ModuleCheck:
    torch.manual_seed(0)
    return bptt.check_module(broken.FinalCellWithoutGradient(3, 4))


def test_the_table_names_the_module_and_the_place(wrong):
    text = str(wrong)
    assert text.startswith("FinalCellWithoutGradient(3, 4): 6 steps of 3 sequences, float64; ")
    assert "d c_n[t=5] / d x[s=0]: expected " in text
    assert text.count("does not apply") == sum(c.verdict == "does not apply" for c in wrong.checks)
    assert max(map(len, text.splitlines())) <= 110


def test_an_error_holds_the_table(wrong):
    with pytest.raises(AssertionError) as raised:
        wrong.assert_ok()
    assert str(wrong) in str(raised.value)
    assert bptt.check_module(nn.GRU(3, 4)).assert_ok() is None


def test_sizes_of_the_error(wrong):
    problem = wrong.problem
    assert problem.found == 0
    assert problem.error == abs(problem.expected)
    assert problem.relative_error == 1
    assert problem is wrong.wrong[0].problem


def test_it_is_data_too(wrong):
    found = json.loads(json.dumps(wrong.to_dict()))
    assert found["ok"] is False
    assert [c["name"] for c in found["checks"]] == [c.name for c in wrong.checks]
    assert {c["verdict"] for c in found["checks"]} == {"passed", "wrong", "does not apply"}
