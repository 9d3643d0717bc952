"""Training loops of one's own: N processes give the losses and the weights of one."""

from __future__ import annotations

import os

import pytest
import torch
from ranks.launched import HERE, torchrun
from ranks.launched import run as run_to_end
from ranks.own_loops import LOOPS, UPDATES, WRAPPERS
from ranks.own_loops import run as train

PATH = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
EXAMPLE = HERE.parents[1] / "examples/several_processes.py"


def run(command, directory):
    return run_to_end(command, cwd=directory, PYTHONPATH=PATH)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """What every process of three found, by rank; two are what the example starts."""
    directory = tmp_path_factory.mktemp("own")
    done = run(torchrun(3, str(HERE / "own_loops.py"), str(directory)), directory)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(directory / f"own-3-{rank}.pt") for rank in range(3)]


@pytest.fixture(scope="module")
def alone():
    found = {}

    def of(name):
        if name not in found:
            torch.set_num_threads(1)
            found[name] = train(name, lambda m: m)
        return found[name]

    return of


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", LOOPS)
def test_same_as_one(name, wrapper, several, alone):
    one = alone(name)
    assert one["losses"][-1] < 0.999 * one["losses"][0]
    for of_rank in several:
        found = of_rank[f"{name}, {wrapper}"]
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-12)
        assert found["weights"].keys() == one["weights"].keys()
        for k, w in one["weights"].items():
            torch.testing.assert_close(found["weights"][k], w, rtol=1e-10, atol=1e-12)
        assert torch.equal(found["plans"], one["plans"])  # drawn in step
        assert found["calls"] == one["calls"]
        assert found["saved"].keys() == {"state", "past", "before", "resets"}


def test_a_wrapped_module_is_called_once_for_all_cuts(several):
    for of_rank in several:
        for wrapper in WRAPPERS:
            assert of_rank[f"own, randomized, {wrapper}"]["calls"] == UPDATES


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example's run in one process."""
    return run([torchrun(1)[0], str(EXAMPLE)], tmp_path_factory.mktemp("example"))


@pytest.mark.parametrize(("size", "wrapper"), [(2, "ddp"), (3, "fsdp")])
def test_the_example_prints_the_same(wrapper, size, example, tmp_path):
    many = run(torchrun(size, str(EXAMPLE), wrapper), tmp_path)
    assert many.returncode == 0, many.stderr[-4000:]
    assert len(example.stdout.split()) == 50
    assert many.stdout == example.stdout
