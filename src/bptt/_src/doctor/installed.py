"""What is installed: this Python, the packages that bptt needs, and those of each extra."""

from __future__ import annotations

import platform
import re
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires, version

import bptt
from bptt._src.doctor.diagnosis import Diagnosis

COSTS = {
    "lm": "Without it there are no language models, comparisons and benchmarks, and of the "
    "commands only this one.",
    "plot": "Without it there are no pictures: no bptt compare, no --figure.",
    "tensorboard": "Without it there is no bptt train --tensorboard.",
    "onnx": "Without onnx and onnxscript there is no bptt export; without onnxruntime it does not "
    "check what it has written.",
}
"""What each extra is for; the extra ``all`` has no package of its own."""

_REQUIREMENT = re.compile(r"([\w.-]+) *>= *([\w.]+)(?: *;.*extra *== *['\"](\w+)['\"])?")


def look_at_packages() -> list[Diagnosis]:
    """Look at Python, at the packages that bptt cannot do without, and at those of the extras."""
    where = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    figures = {"bptt": bptt.__version__, "python": platform.python_version()}
    found = [Diagnosis("bptt", "ok", f"{bptt.__version__}, {where}", figures=figures)]
    try:
        needed = _by_extra(requires("bptt") or [])
    except PackageNotFoundError:
        return [
            *found,
            Diagnosis(
                "packages",
                "note",
                "bptt runs from a directory that is not installed, so what it needs is not known",
                remedy="pip install . in the checkout",
            ),
        ]
    core = needed.pop("", {})
    return [*found, _core(core), *(_extra(extra, needed[extra]) for extra in needed)]


def _by_extra(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return the least version of each package, by extra; those without one are under "".

    >>> _by_extra(["torch>=2.6", "rich>=13.9; extra == 'lm'", "bptt[lm]; extra == 'all'"])
    {'': {'torch': '2.6'}, 'lm': {'rich': '13.9'}}
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in lines:
        if match := _REQUIREMENT.match(line):
            package, least, extra = match.groups()
            found[extra or ""][package] = least
    return dict(found)


def _core(needed: dict[str, str]) -> Diagnosis:
    there, absent, old = _sorted(needed)
    remedy = f"pip install --upgrade {' '.join([*absent, *(o.split()[0] for o in old)])}"
    says = ", ".join(f"{n} {v}" for n, v in there.items())
    if not absent and not old:
        return Diagnosis("packages", "ok", says, figures=dict(there))
    costs = f"bptt needs {' and '.join([*absent, *old])}."
    return Diagnosis("packages", "broken", says or "none", costs, remedy, dict(there))


def _extra(extra: str, needed: dict[str, str]) -> Diagnosis:
    there, absent, old = _sorted(needed)
    says = ", ".join(f"{n} {v}" for n, v in there.items())
    figures = {"installed": there, "absent": absent, "too_old": old}
    name = f"bptt[{extra}]"
    remedy = f"pip install --upgrade '{name}'"
    if old:
        costs = f"Too old, and may fail: {', '.join(old)}."
        return Diagnosis(name, "broken", says, costs, remedy, figures)
    if absent:
        without = f"not installed: {', '.join(absent)}" + (f"; installed: {says}" if says else "")
        return Diagnosis(name, "missing", without, COSTS[extra], remedy, figures)
    return Diagnosis(name, "ok", says, figures=figures)


def _sorted(needed: dict[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the versions of what is there, what is not, and what is older than it must be."""
    there, absent, old = {}, [], []
    for package, least in needed.items():
        try:
            there[package] = version(package)
        except PackageNotFoundError:
            absent.append(package)
            continue
        if release(there[package]) < release(least):
            old.append(f"{package} >= {least}")
    return there, absent, old


def release(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with.

    >>> release("2.13.0+cpu"), release("2.6") < release("2.13.0+cpu")
    ((2, 13, 0), True)
    """
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()
