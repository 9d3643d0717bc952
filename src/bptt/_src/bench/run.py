"""One run: what is measured, in which order, and what is there if it is stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from bptt._src.bench import crowded, fresh, jax_scan, sharing
from bptt._src.bench.layers import measure_credit, measure_layer
from bptt._src.bench.models import measure_model
from bptt._src.bench.processor import conditions, measure_limits
from bptt._src.bench.ranks import PROCESSES, measure_ranks
from bptt._src.bench.result import Bench, Limits, Row, SeedEpoch, Start
from bptt._src.bench.shapes import GATES, MODELS, SHAPES, Shape
from bptt._src.bench.sight import measure_sight
from bptt._src.bench.timing import Effort, Pace, Stopped
from bptt._src.bench.tutorial import measure_seed_epoch
from bptt.errors import ConfigError, spelled
from bptt.kernels import backend

SECTIONS = {
    "kernels": "a training step of a layer",
    "model": "a training step of a whole language model",
    "credit": "windows behind each loss beside the exact gradient",
    "sight": "seeing how far the gradient reaches, as a share of the training time",
    "ranks": "a language model in one process and in two",
    "seed": "an epoch of the seed's job, beside the textbook",
    "start": "loading the library and the first call, in a fresh process",
    "threads": "a layer where threads have to share processors",
}
"""What can be measured; the processor's limits always are."""


USED_BY = {
    "shape": ("kernels", "threads"),
    "cell": ("kernels", "credit", "threads"),
    "rounds": ("kernels", "model", "credit", "sight", "ranks", "threads"),
    "sentences": ("seed",),
    "figure": ("kernels", "model"),
}
"""The sections in which an option has an effect."""


def check_used(given: Iterable[str], sections: Sequence[str]) -> None:
    """Refuse options that have no effect in the sections that are measured.

    Raises:
        ConfigError: there is one.
    """
    for option in given:
        used = USED_BY.get(option, ())
        if used and sections and not {*used} & {*sections}:
            raise ConfigError(
                f"{spelled(option)} has no effect on {' and '.join(sections)}: leave it out, or "
                "add " + " or ".join(spelled("only", section) for section in used)
            )


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


Job = tuple[str, Callable[[], Any]]
"""What it is called, and the work."""


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
    with _threads(threads):
        jax, no_jax = jax_scan.load(torch.get_num_threads())
        found = Bench(conditions(jax) | asdict(effort))
        if no_jax is not None:
            found.notes.append(no_jax)
        pace = _Pace(watch, stop)
        found.notes += _not_possible(only or list(SECTIONS))
        wanted = _jobs(
            shapes,
            [c for c in GATES if c in cells],
            only or list(SECTIONS),
            effort,
            pace,
            jax=jax is not None,
        )
        _run(found, wanted, watch, pace)
    return found


def _check(option: str, given: Sequence[str], known: Sequence[str] | dict[str, Any]) -> None:
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


def _jobs(
    shapes: Sequence[Shape],
    cells: Sequence[str],
    only: Sequence[str],
    effort: Effort,
    pace: Pace,
    *,
    jax: bool,
) -> list[Job]:
    jobs: list[Job] = [("the processor's limits", partial(measure_limits, 5 * effort.turn))]
    if "kernels" in only:
        for cell in cells or GATES:
            for shape in shapes or SHAPES:
                work = partial(measure_layer, cell, shape, effort, pace, jax=jax)
                jobs.append((f"{cell.upper()} {shape}", work))
    if "model" in only:
        for m in MODELS:
            work = partial(measure_model, m, effort, pace)
            jobs.append((f"language model, {m.name} {m}", work))
    if "credit" in only:
        for cell in cells or GATES:
            work = partial(measure_credit, cell, SHAPES[0], effort, pace)
            jobs.append((f"{cell.upper()} {SHAPES[0]}, windows", work))
    if "sight" in only:
        for m in MODELS:
            work = partial(measure_sight, m, effort, pace)
            jobs.append((f"sight, {m.name} {m}", work))
    if "ranks" in only and _why_not_ranks() is None:
        for m in MODELS:
            work = partial(measure_ranks, m, effort, pace)
            jobs.append((f"ranks, {m.name} {m}", work))
    if "seed" in only:
        jobs.append(("the seed's epoch", partial(measure_seed_epoch, effort, pace)))
    if "start" in only:
        jobs.append(("the start of a process", _measure_start))
    if "threads" in only:
        of = cells or crowded.CELLS, shapes or crowded.SHAPES
        jobs += [
            (str(s), partial(crowded.measure_crowded, s, *of, effort, pace))
            for s in crowded.SITUATIONS
            if s.processors <= len(sharing.processors_to_choose())
        ]
    return jobs


def _why_not_ranks() -> str | None:
    """Return why the section ranks cannot be measured here."""
    have = len(sharing.processors_to_choose()) or os.cpu_count() or 1
    if have < PROCESSES:
        return f"ranks: not measured, {PROCESSES} processes on {have} processor say nothing"
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        return "ranks: not measured, this torch has no gloo for processes to talk by"
    return None


def _not_possible(only: Sequence[str]) -> list[str]:
    """Describe what of the sections ranks and threads cannot be measured here."""
    have = len(sharing.processors_to_choose())
    reason = _why_not_ranks() if "ranks" in only else None
    notes = [] if reason is None else [reason]
    if "threads" not in only:
        return notes
    if have == 0:
        return [*notes, "threads: not measured, this system lets no process choose its processors"]
    return notes + [
        f"{s}: not measured, this process may run on {have} only"
        for s in crowded.SITUATIONS
        if s.processors > have
    ]


def _measure_start() -> Start:
    return Start(**fresh.run_fresh(fresh.beginning, torch.get_num_threads(), backend().name))


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
