"""What the package says of itself, in each place that says it."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import yaml

import bptt

ROOT = Path(__file__).parents[1]
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
ON_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def test_the_version_is_one_and_the_changelogs_newest():
    assert re.fullmatch(r"\d+\.\d+\.\d+", bptt.__version__)
    assert RECIPE["context"]["version"] == bptt.__version__
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(rf"{re.escape(bptt.__version__)}, (unreleased|\d{{4}}-\d\d-\d\d)", heading)


def _of_conda(requirement: str) -> str:
    name, least = re.match(r"([\w.-]+) *(>=[\w.]+)", requirement).groups()
    return f"{ON_CONDA.get(name, name)} {least}"


def test_the_recipe_asks_for_what_the_package_asks_for():
    of_core, of_extras = set(), set()
    for line in requires("bptt"):
        if not line.startswith("bptt["):
            (of_extras if "extra ==" in line else of_core).add(_of_conda(line))
    needed = RECIPE["requirements"]
    torch = f"pytorch >={RECIPE['context']['torch_min']}"
    run = [torch if line.startswith("pytorch") else line for line in needed["run"]]
    assert set(run) - {"python"} == of_core
    assert set(needed["run_constraints"]) == of_extras


def test_the_recipe_keeps_to_the_order_of_conda_forge():
    """Its linter's: sections, what about must say, a number, a license's file, one empty line."""
    order = ["context", "package", "source", "build", "requirements", "tests", "about", "extra"]
    assert list(RECIPE) == order
    assert list(RECIPE["requirements"]) == ["build", "host", "run", "run_constraints"]
    assert {"homepage", "license", "license_file", "summary"} <= RECIPE["about"].keys()
    assert RECIPE["build"]["number"] == 0
    assert isinstance(RECIPE["extra"]["recipe-maintainers"], list)
    assert (ROOT / "recipe" / "recipe.yaml").read_text().rstrip("\n") + "\n" == (
        ROOT / "recipe" / "recipe.yaml"
    ).read_text()
    for section in ("build", "host", "run", "run_constraints"):
        for line in RECIPE["requirements"][section]:
            name = r"(\$\{\{ \w+\(\"\w+\"\) \}\}|[a-z][a-z0-9-]*)"
            assert re.fullmatch(name + r"( [<>=]+(\$\{\{ \w+ \}\}|[\d.]+))?", line), line
