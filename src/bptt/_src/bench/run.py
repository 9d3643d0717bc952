"""One run: what is there of it if it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch

from bptt._src.bench import jax_scan
from bptt._src.bench.jobs import SECTIONS, Job, Wanted, check_used, jobs_of, not_possible
from bptt._src.bench.processor import conditions
from bptt._src.bench.result import Bench, Limits, Row, SeedEpoch, Start
from bptt._src.bench.shapes import GATES, Shape
from bptt._src.bench.timing import Effort, Pace, Stopped
from bptt.errors import ConfigError, spelled


class BenchWatch:
    """What wants to know how it goes; this one does not."""

    def begun(self, what: str, number: int, jobs: int) -> None:
        """Called when a measurement begins, the first of them number 0."""

    def done(self, share: float) -> None:
        """Called with the part of it that is done, from 0 to 1."""


class _Pace(Pace):
    def __init__(self, watch: BenchWatch, stop: Callable[[], object]) -> None:
        self.watch, self.stop = watch, stop

    def stopped(self) -> bool:
        return bool(self.stop())

    def done(self, share: float) -> None:
        self.watch.done(share)


def bench(
    *,
    shapes: Sequence[Shape] = (),
    cells: Sequence[str] = (),
    only: Sequence[str] = (),
    threads: int | None = None,
    effort: Effort | None = None,
    watch: BenchWatch | None = None,
    stop: Callable[[], object] = lambda: None,
) -> Bench:
    """Measure training here.

    Args:
        shapes: of a layer, T/B/I/H; six usual ones by default.
        cells: of ``"rnn"``, ``"gru"``, ``"lstm"``; all by default. They choose among the layers,
            not among the language models.
        only: sections of :data:`SECTIONS`; all by default.
        threads: of the processor, for everyone; torch's number by default. The sections
            ``"ranks"`` and ``"threads"`` have numbers of their own.
        effort: how many rounds, and how long a turn; ``Effort()`` by default, ``Effort.quick()``
            for a first look.
        watch: is told how it goes.
        stop: asked after each round; a true answer is the end of it.

    Returns:
        All that was measured until then.

    Raises:
        ConfigError: an argument is not one of those above.
    """
    _check("cell", cells, GATES)
    _check("only", only, SECTIONS)
    check_used([n for n, given in (("shape", shapes), ("cell", cells)) if given], only)
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"{spelled('threads')} must be from 1 to 1024, got {threads}")
    if threads is not None and only and {*only} <= {"ranks", "threads"}:
        raise ConfigError(
            f"{spelled('threads')} has no effect on {' and '.join(only)}, with numbers of their "
            "own: leave it out"
        )
    watch, effort = watch or BenchWatch(), effort or Effort()
    sections = only or list(SECTIONS)
    with _threads(threads):
        jax, no_jax = jax_scan.load(torch.get_num_threads())
        found = Bench(conditions(jax) | asdict(effort))
        if no_jax is not None:
            found.notes.append(no_jax)
        found.notes += not_possible(sections)
        pace = _Pace(watch, stop)
        chosen = [c for c in GATES if c in cells]
        wanted = Wanted(shapes, chosen, sections, effort, pace, jax is not None)
        _run(found, jobs_of(wanted), watch, pace)
    return found


def _check(option: str, given: Sequence[str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{spelled(option)} must be one of {', '.join(known)}, got {name!r}")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(found: Bench, jobs: Sequence[Job], watch: BenchWatch, pace: Pace) -> None:
    for number, (what, work) in enumerate(jobs):
        watch.begun(what, number, len(jobs))
        try:
            pace.check()
            _put(found, work())
        except Stopped:
            break
    found.interrupted = pace.stopped()


def _put(found: Bench, measured: Limits | Row | list[Row] | SeedEpoch | Start) -> None:
    if isinstance(measured, Row):
        found.rows.append(measured)
    elif isinstance(measured, list):
        found.rows += measured
    elif isinstance(measured, Limits):
        found.limits = measured
    elif isinstance(measured, SeedEpoch):
        found.seed_epoch = measured
    else:
        found.start = measured
