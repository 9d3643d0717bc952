"""N processes give the losses and the weights of one, to rounding, whatever is trained how."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from ranks.launched import HERE, run, torchrun
from ranks.trainings import TRAININGS, go_on, text, train

SIZES = (2, 3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("distributed")
    text(made / "book.txt")
    return made


@pytest.fixture(scope="module", autouse=True)
def cache(directory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CACHE", str(directory / "cache"))
        yield


def launched(size, directory, *arguments):
    """What every process found, by rank."""
    command = torchrun(size, str(HERE / "trainings.py"), str(directory), *arguments)
    done = run(command, cwd=directory, BPTT_CACHE=str(directory / "cache"))
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(directory / f"{arguments[0]}-{size}-{rank}.pt") for rank in range(size)]


@pytest.fixture(scope="module")
def trained(directory):
    """What every process of so many found; they are started once."""
    return functools.cache(lambda size: launched(size, directory, "train", "all"))


@pytest.fixture(scope="module", params=SIZES)
def several(request, trained):
    return request.param, trained(request.param)


@pytest.fixture(scope="module")
def alone(directory):
    found = {}

    def of(name):
        if name not in found:
            torch.set_num_threads(1)
            found[name] = train(name, directory / "book.txt", directory / f"{name} 1")
        return found[name]

    return of


def same(one, other):
    assert len(one["losses"]) == len(other["losses"])
    assert other["losses"] == pytest.approx(one["losses"], rel=2e-5)
    for name, w in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], w, rtol=1e-4, atol=2e-6)
    assert other["valid"] == pytest.approx(one["valid"], rel=2e-5)
    assert other["progress"] == one["progress"]
    assert torch.equal(other["random"], one["random"])


@pytest.mark.parametrize("name", TRAININGS)
def test_same_as_one(name, several, alone):
    _, found = several
    one = alone(name)
    for of_rank in found:
        same(one, of_rank[name])
    for name_, w in found[0][name]["weights"].items():
        assert all(torch.equal(w, of_rank[name]["weights"][name_]) for of_rank in found)
    shares = [of_rank[name]["shares"] for of_rank in found]
    assert [sum(s) for s in zip(*shares, strict=True)] == one["shares"]


def test_the_reach_is_measured_and_the_same(several):
    _, found = several
    learnt = [of_rank["adaptive"]["credit"] for of_rank in found]
    assert all(state == learnt[0] for state in learnt)


def test_a_batch_may_leave_a_process_without_a_sequence(several):
    size, found = several
    if size == 3:
        assert any(0 in of_rank["one batch is short"]["shares"] for of_rank in found)


NAMES = ("lstm, streams", "earlier steps run again", "adam", "two layers, dropout, lines")


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 3), (3, 1)])
def test_another_number_of_processes_goes_on(first, then, directory, alone, trained):
    """A checkpoint does not know how many processes wrote it, and how many will read it."""
    if first > 1:
        trained(first)
    whole = {}
    for name in NAMES:
        alone(name)
        made = directory / f"{name} {first}"
        shutil.copytree(made, directory / f"{name} {first} {then}")
        shutil.copytree(directory / f"{name} 1", directory / f"{name} 1 {first}{then}")
        whole[name] = go_on(directory / f"{name} 1 {first}{then}")
    names = [f"{name} {first} {then}" for name in NAMES]
    if then == 1:
        found = [{name: go_on(directory / name) for name in names}]
    else:
        found = launched(then, directory, "go_on", *names)
    for of_rank in found:
        for name in NAMES:
            same(whole[name], of_rank[f"{name} {first} {then}"])
