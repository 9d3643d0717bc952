"""Put into an environment what a package requires, by links to this one's files.

``python tools/borrow_requirements.py ENVIRONMENT PACKAGE[EXTRA,...] [TOOL ...]``: ENVIRONMENT is
the site-packages of another one with the same Python. So what a package asks for can be tried
without installing torch again; what it does not ask for is not there. Of the tools it borrows
themselves, too.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def required(wanted: Requirement) -> Iterator[Requirement]:
    """Yield what a distribution requires with some of its extras, in this environment."""
    for line in distribution(wanted.name).requires or ():
        found = Requirement(line)
        extras = wanted.extras or {""}
        if found.marker is None or any(found.marker.evaluate({"extra": e}) for e in extras):
            yield found


def closure(wanted: Requirement) -> set[str]:
    """Return the names of all that it takes, without its own."""
    done: set[str] = set()
    waiting = [wanted]
    while waiting:
        one = waiting.pop()
        if str(one) not in done:
            done.add(str(one))
            waiting += required(one)
    names: set[str] = {canonicalize_name(Requirement(line).name) for line in done}
    return names - {canonicalize_name(wanted.name)}


def link(found: Distribution, place: Path) -> None:
    """Link the top of each file of a distribution."""
    for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        target = place / name
        if not target.exists():
            target.symlink_to(Path(str(found.locate_file(name))).resolve())


def main() -> None:
    """Borrow."""
    place, wanted, *tools = Path(sys.argv[1]), *map(Requirement, sys.argv[2:])
    names = closure(wanted)
    for tool in tools:
        names |= closure(tool) | {canonicalize_name(tool.name)}
    for name in sorted(names):
        link(distribution(name), place)


if __name__ == "__main__":
    main()
