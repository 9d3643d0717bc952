"""Where the native library is looked for, and what is said where there is none."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from bptt._src.engines import find


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The directory of the package's modules."""
    place = tmp_path / "bptt" / "kernels"
    place.mkdir(parents=True)
    monkeypatch.setattr(find, "__file__", str(place / "find.py"))
    return place


@pytest.fixture
def editable(tmp_path, monkeypatch):
    """Where an editable install has what was compiled."""

    class Installed:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "site-packages" / path

    monkeypatch.setattr(find, "distribution", {"bptt": Installed()}.__getitem__)
    place = tmp_path / "site-packages" / "bptt.libs"
    place.mkdir(parents=True)
    return place


@pytest.fixture
def not_installed(monkeypatch):
    """Modules on Python's path, of a package that no pip has installed."""

    def distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(find, "distribution", distribution)


def test_a_wheel_has_it_beside_the_modules(beside, editable):
    for place in (editable, beside):
        (place / find.NAME).touch()
    assert find.library_path() == beside / find.NAME


def test_an_editable_install_has_it_in_the_environment(beside, editable):
    (editable / find.NAME).touch()
    assert find.library_path() == editable / find.NAME


def test_modules_that_were_not_installed_find_it_beside_them(beside, not_installed):
    (beside / find.NAME).touch()
    assert find.library_path() == beside / find.NAME


def test_without_one_all_places_and_the_remedy_are_named(beside, editable):
    with pytest.raises(FileNotFoundError) as e:
        find.library_path()
    assert f"no {find.NAME} in {beside} or {editable}: it is compiled" in str(e.value)
    assert "C++17 compiler (gcc or clang); with one, install bptt again" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_install_that_is_not_there_is_not_a_place(beside, not_installed):
    with pytest.raises(FileNotFoundError, match=f"no {find.NAME} in {beside}: it is"):
        find.library_path()
