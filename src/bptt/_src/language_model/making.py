"""Creation of a run: it appears as a whole, even if the process dies at any moment.

A new run is written to ``.bptt-new`` inside its place and renamed to ``.bptt-next`` when it is
complete. From then on it is the current run: if the process that made it dies, the next one that
opens the run moves the files to their places. Nothing else in the directory is touched. Everything
happens under the lock, so what is left of a creation always comes from a dead process.
"""

from __future__ import annotations

import itertools
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bptt._src.atomic import named, read_whole, sync_directory
from bptt._src.documents import MOST, SEAL, parse_json
from bptt._src.language_model.config import fields_by_name
from bptt._src.language_model.lock import HAS_LOCKS, Lock
from bptt._src.shell import quoted
from bptt.errors import CheckpointError, ConfigError, spelled

_NEW, _NEXT = ".bptt-new", ".bptt-next"
_LATER = ("model.safetensors", "metrics.jsonl", "tensorboard")  # added by training
_AT_ONCE = ("tokenizer.json", "text.json", "checkpoint.safetensors", "config.json")
_PATIENCE = 10.0  # seconds that another process may need to move a few files


class Creation:
    """A new run being made; without :meth:`finish`, leaving it restores everything as it was.

    Args:
        place: the run's directory; made if there is none.
        lock: the directory's lock, if it is held already.
        overwrite: whether to replace an existing run.

    Raises:
        ConfigError: there is a run already, or another process trains it.
        OSError: it cannot be written.
    """

    def __init__(self, place: Path, lock: Lock | None, *, overwrite: bool) -> None:
        self.place, self.new = place, place / _NEW
        self._made = _make_directories(place)
        self._had_lock = (place / ".lock").exists()
        self._held, self._lock = lock is not None, lock
        try:
            if self._lock is None:
                self._lock = Lock(place)
            remove_leavings(place)
            _finish(place)
            check_free(place, overwrite=overwrite)
            self.new.mkdir()
        except BaseException:
            self._undo()
            raise

    def finish(self) -> Lock:
        """Make the new run the current one; return its lock, held."""
        sync_directory(self.new)
        with named(self.place):
            self.new.rename(self.place / _NEXT)
        sync_directory(self.place)
        for path in self._made:
            sync_directory(path.parent)
        self._made = []
        _finish(self.place)
        assert self._lock is not None
        return self._lock

    def __enter__(self) -> Creation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._undo()

    def _undo(self) -> None:
        shutil.rmtree(self.new, ignore_errors=True)
        if self._lock is not None and not self._held:
            if not self._had_lock:
                (self.place / ".lock").unlink(missing_ok=True)
            self._lock.release()
        for path in self._made:
            try:
                path.rmdir()
            except OSError:  # another program's file is in it
                break


def claim_first_free(within: Path, name: str) -> tuple[Path, Lock]:
    """Make and lock a directory named by the name and the first free number.

    A directory in which a process died before it had made a run counts as free.
    """
    for number in itertools.count(1):
        path = within / f"{name}-{number}"
        try:
            path.mkdir(exist_ok=HAS_LOCKS)
        except FileExistsError:
            continue
        try:
            if not _is_abandoned(path):
                continue
            lock = Lock(path)
        except (ConfigError, FileNotFoundError):  # another process has it, or has just removed it
            continue
        if _is_abandoned(path):
            return path, lock
        lock.release()
    raise AssertionError


def give_up(path: Path, lock: Lock) -> None:
    """Remove a directory that was claimed, unless it holds a run by now."""
    if _is_abandoned(path):
        (path / ".lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # another process has claimed it
            path.rmdir()
    else:
        lock.release()


def _is_abandoned(path: Path) -> bool:
    return {p.name for p in path.iterdir()} <= {".lock", _NEW}


def is_run(place: Path) -> bool:
    """Whether a directory holds a run."""
    return (place / "config.json").exists() or _is_made(place)


def check_free(place: Path, *, overwrite: bool) -> None:
    """Make sure that a run can be made in a directory.

    Raises:
        ConfigError: there is a run that must not be replaced, or another file is in the way.
    """
    if is_run(place) and not overwrite:
        raise ConfigError(
            f"{place} already holds a run: continue it with {spelled('resume')} {quoted(place)}, "
            f"replace it with {spelled('overwrite')}, or choose another {spelled('out')}"
        )
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{spelled('out', str(place))} is a file; choose a directory")
    for name in (*_AT_ONCE, *_LATER):
        path = place / name
        if not path.exists():
            continue
        if not overwrite:
            raise ConfigError(
                f"{path} is in the way of a new run: choose another {spelled('out')}, move it "
                f"away, or replace it with {spelled('overwrite')}"
            )
        if path.is_dir() and name != "tensorboard":
            raise ConfigError(
                f"{path} is a directory, in the way of a run: choose another {spelled('out')}"
            )
    if _is_foreign(place / "config.json"):
        raise ConfigError(
            f"{place} holds no run of bptt, but another program's config.json: choose another "
            f"{spelled('out')}"
        )


def _is_foreign(path: Path) -> bool:
    """Whether this is JSON without bptt's options; a damaged file may have been bptt's."""
    try:
        found = parse_json(read_whole(path, MOST))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and not found.keys() & {*fields_by_name(), SEAL}


def refuse_links(place: Path) -> None:
    """Refuse a run that has a symbolic link for a file; training would write through it.

    Raises:
        CheckpointError: there is one.
    """
    for name in (*_AT_ONCE, *_LATER, ".lock"):
        if (place / name).is_symlink():
            raise CheckpointError(
                f"{place / name} is a symbolic link, which training does not write through: put "
                "the file itself in its place"
            )


def finish_interrupted(place: Path) -> None:
    """Complete the replacement of a run that a killed process had begun.

    Raises:
        CheckpointError: another process is still doing so, or it cannot be completed here.
    """
    deadline = time.monotonic() + _PATIENCE
    while _is_made(place):
        try:
            lock = Lock(place)
        except ConfigError:  # held by the process that is doing so
            if time.monotonic() > deadline:
                raise CheckpointError(f"another process is replacing the run {place}") from None
            time.sleep(0.01)
            continue
        except OSError as e:
            raise _unfinished(place, e) from None
        try:
            _finish(place)
        except OSError as e:
            raise _unfinished(place, e) from None
        finally:
            lock.release()


def _unfinished(place: Path, e: OSError) -> CheckpointError:
    return CheckpointError(
        f"{place} was being replaced when its process was killed, and this cannot be completed "
        f"here ({e.strerror}): open the run once where it can be written"
    )


def remove_leavings(place: Path) -> None:
    """Remove the unfinished files of a killed process; only under the lock."""
    _remove(place / _NEW)
    for name in (*_AT_ONCE, *_LATER):
        for path in place.glob(f".{name}.*.new"):
            path.unlink()


def _finish(place: Path) -> None:
    """Move the files of a new run to their places, except those already moved."""
    if not _is_made(place):
        return
    following = place / _NEXT
    for name in _LATER:
        _remove(place / name)
    for name in _AT_ONCE:
        if (following / name).exists():
            (following / name).replace(place / name)
    sync_directory(place)
    shutil.rmtree(following)
    sync_directory(place)


def _is_made(place: Path) -> bool:
    """Whether a complete new run waits here to be moved to its place."""
    return (place / _NEXT).is_dir() and not (place / _NEXT).is_symlink()


def _make_directories(place: Path) -> list[Path]:
    """Make a directory and its parents; return those that were made, innermost first."""
    made = []
    for path in (place, *place.parents):
        if path.exists():
            break
        made.append(path)
    place.mkdir(parents=True, exist_ok=True)
    return made


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
