"""What a run has to measure: the sections, and the work that each of them is."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bptt._src.bench import crowded, fresh, memory, sharing
from bptt._src.bench.generation import measure_reading, measure_writing
from bptt._src.bench.layers import measure_credit, measure_layer, measure_layer_in_bf16
from bptt._src.bench.models import measure_model, measure_model_in_bf16
from bptt._src.bench.processor import measure_limits
from bptt._src.bench.ranks import PROCESSES, measure_ranks
from bptt._src.bench.result import Start
from bptt._src.bench.search import measure_search
from bptt._src.bench.shapes import (
    ACTING,
    GATES,
    MODELS,
    READERS,
    READOUTS,
    SHAPES,
    VARIANTS,
    WRITERS,
    Shape,
)
from bptt._src.bench.sight import measure_sight
from bptt._src.bench.timing import Effort, Pace
from bptt._src.bench.tutorial import measure_seed_epoch
from bptt._src.bench.uses import measure_acting, measure_readout, measure_variant
from bptt.errors import ConfigError, spelled
from bptt.kernels import backend

Job = tuple[str, Callable[[], Any]]
"""What it is called, and the work."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, and how."""

    shapes: Sequence[Shape]
    """Instead of a section's own; none: those."""
    cells: Sequence[str]
    """Instead of a section's own; none: those."""
    only: Sequence[str]
    """The sections."""
    effort: Effort
    pace: Pace
    jax: bool
    """Whether JAX takes part."""

    @property
    def how(self) -> tuple[Effort, Pace]:
        """How much, and how to stop."""
        return self.effort, self.pace

    def layers(self, usual: Sequence[Shape]) -> Iterator[tuple[str, Shape]]:
        """Yield each cell at each shape, the usual ones where no others are given."""
        for cell in self.cells or GATES:
            for shape in self.shapes or usual:
                yield cell, shape


def _kernels(wanted: Wanted) -> Iterator[Job]:
    for cell, shape in wanted.layers(SHAPES):
        work = partial(measure_layer, cell, shape, *wanted.how, jax=wanted.jax)
        yield f"{cell.upper()} {shape}", work


def _model(wanted: Wanted) -> Iterator[Job]:
    for m in MODELS:
        yield f"language model, {m.name} {m}", partial(measure_model, m, *wanted.how)


def _bf16(wanted: Wanted) -> Iterator[Job]:
    for cell, shape in wanted.layers(SHAPES):
        work = partial(measure_layer_in_bf16, cell, shape, *wanted.how)
        yield f"{cell.upper()} {shape}, bf16", work
    for m in MODELS:
        work = partial(measure_model_in_bf16, m, *wanted.how)
        yield f"language model, {m.name} {m}, bf16", work


def _acting(wanted: Wanted) -> Iterator[Job]:
    for cell, shape in wanted.layers(ACTING):
        yield f"{cell.upper()} {shape}, forward", partial(measure_acting, cell, shape, *wanted.how)


def _sampling(wanted: Wanted) -> Iterator[Job]:
    for m in WRITERS:
        yield f"sampling, {m.name} {m}", partial(measure_writing, m, *wanted.how)


def _evaluation(wanted: Wanted) -> Iterator[Job]:
    for m in READERS:
        yield f"evaluation, {m.name} {m}", partial(measure_reading, m, *wanted.how)


def _readout(wanted: Wanted) -> Iterator[Job]:
    for shape in READOUTS:
        yield f"readout {shape}", partial(measure_readout, shape, *wanted.how)


def _variants(wanted: Wanted) -> Iterator[Job]:
    for v in VARIANTS:
        yield f"{v.name} {v.shape}", partial(measure_variant, v, *wanted.how)


def _credit(wanted: Wanted) -> Iterator[Job]:
    for cell in wanted.cells or GATES:
        work = partial(measure_credit, cell, SHAPES[0], *wanted.how)
        yield f"{cell.upper()} {SHAPES[0]}, windows", work


def _sight(wanted: Wanted) -> Iterator[Job]:
    for m in MODELS:
        yield f"sight, {m.name} {m}", partial(measure_sight, m, *wanted.how)


def _ranks(wanted: Wanted) -> Iterator[Job]:
    for m in MODELS:
        yield f"ranks, {m.name} {m}", partial(measure_ranks, m, *wanted.how)


def _search(wanted: Wanted) -> Iterator[Job]:
    yield "the search", partial(measure_search, wanted.cells, *wanted.how)


def _seed(wanted: Wanted) -> Iterator[Job]:
    yield "the seed's epoch", partial(measure_seed_epoch, *wanted.how)


def _start(wanted: Wanted) -> Iterator[Job]:
    yield "the start of a process", measure_start


def _memory(wanted: Wanted) -> Iterator[Job]:
    of = wanted.cells or memory.CELLS, wanted.shapes or memory.SHAPES
    threads = torch.get_num_threads()
    yield "memory", partial(memory.measure_memory, *of, threads, *wanted.how)


def _threads(wanted: Wanted) -> Iterator[Job]:
    of = wanted.cells or crowded.CELLS, wanted.shapes or crowded.SHAPES
    for s in crowded.SITUATIONS:
        if s.processors <= len(sharing.processors_to_choose()):
            yield str(s), partial(crowded.measure_crowded, s, *of, *wanted.how)


@dataclass(frozen=True)
class Section:
    """A part of a run."""

    about: str
    """What is measured."""
    jobs: Callable[[Wanted], Iterable[Job]]
    uses: frozenset[str]
    """The options that have an effect on it, beside --threads."""


def _section(about: str, jobs: Callable[[Wanted], Iterable[Job]], uses: str) -> Section:
    return Section(about, jobs, frozenset(uses.split()))


ALL = {
    "kernels": _section("a training step of a layer", _kernels, "shape cell rounds figure"),
    "model": _section("a training step of a whole language model", _model, "rounds figure"),
    "bf16": _section(
        "both under autocast to bfloat16, where the kernels multiply in it",
        _bf16,
        "shape cell rounds",
    ),
    "acting": _section(
        "a forward pass of few rows without gradients, as in acting", _acting, "shape cell rounds"
    ),
    "sampling": _section("a language model that writes", _sampling, "rounds"),
    "evaluation": _section("a language model that reads a text", _evaluation, "rounds"),
    "readout": _section("a readout with its loss, of large and of odd sizes", _readout, "rounds"),
    "variants": _section(
        "an LSTM with a projection, layers of float16 and bfloat16", _variants, "rounds"
    ),
    "credit": _section(
        "windows behind each loss beside the exact gradient", _credit, "cell rounds"
    ),
    "sight": _section(
        "seeing how far the gradient reaches, as a share of the training time", _sight, "rounds"
    ),
    "ranks": _section("a language model in one process and in two", _ranks, "rounds"),
    "memory": _section(
        "a layer with memory that the process keeps, without page faults",
        _memory,
        "shape cell rounds",
    ),
    "search": _section(
        "layers of random shapes, the worst of them", _search, "cell rounds search seed"
    ),
    "seed": _section("an epoch of the seed's job, beside the textbook", _seed, "sentences"),
    "start": _section("loading the library and the first call, in a fresh process", _start, ""),
    "threads": _section(
        "a layer where threads have to share processors", _threads, "shape cell rounds"
    ),
}
SECTIONS = {name: section.about for name, section in ALL.items()}
"""What can be measured; the processor's limits always are."""
USED_BY = {
    option: tuple(name for name, section in ALL.items() if option in section.uses)
    for option in ("shape", "cell", "rounds", "search", "seed", "sentences", "figure")
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


def jobs_of(wanted: Wanted) -> list[Job]:
    """Return all that is to be done, the processor's limits first."""
    limits = ("the processor's limits", partial(measure_limits, 5 * wanted.effort.turn))
    possible = [ALL[name] for name in ALL if name in wanted.only and _why_not(name) is None]
    return [limits, *(job for section in possible for job in section.jobs(wanted))]


def _why_not(section: str) -> str | None:
    """Return why a section cannot be measured here at all."""
    choice = len(sharing.processors_to_choose())
    if section == "bf16" and not backend().bf16:
        return "these kernels have no products of bfloat16"
    if section == "memory" and platform.libc_ver()[0] != "glibc":
        return "its settings are those of glibc, which this process does not use"
    if section == "threads" and choice == 0:
        return "this system lets no process choose its processors"
    if section != "ranks":
        return None
    have = choice or os.cpu_count() or 1
    if have < PROCESSES:
        return f"{PROCESSES} processes on {have} processor say nothing"
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        return "this torch has no gloo for processes to talk by"
    return None


def not_possible(only: Sequence[str]) -> list[str]:
    """Describe what of the sections cannot be measured here."""
    notes = [f"{n}: not measured, {why}" for n in ALL if n in only and (why := _why_not(n))]
    have = len(sharing.processors_to_choose())
    if "threads" in only and have:
        notes += [
            f"{s}: not measured, this process may run on {have} only"
            for s in crowded.SITUATIONS
            if s.processors > have
        ]
    return notes


def measure_start() -> Start:
    """Time the beginning of a process."""
    return Start(**fresh.run_fresh(fresh.beginning, torch.get_num_threads(), backend().name))
