"""The comparison itself: the order of the runs, and what they have in common."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from bptt._src.atomic import expanded
from bptt._src.comparison.measures import plans_of
from bptt._src.comparison.result import Comparison, CreditResult, Stop, Trial
from bptt._src.comparison.tasks import CLIP, WINDOW, TaskSetting, TaskTraining, generator_of
from bptt._src.networks import check_cell
from bptt.credit import parse
from bptt.data import TASKS, Task, make_task
from bptt.errors import ConfigError, spelled
from bptt.memory import Memory
from bptt.memory import parse as parse_memory

UPDATES, UPDATES_OF_TEXT = 3000, 400
BUILT_IN = "python"
ENOUGH = 1.05  # a text's target perplexity, relative to the exact credit's last one


class ComparisonWatch:
    """Callbacks of a comparison; the base class does nothing. Override the ones you need."""

    def begun(self, credit: str, seed: int, number: int, runs: int, updates: int) -> None:
        """Called when a run begins, with its number, that of all runs, and its largest update."""

    def updated(self, update: int, loss: float) -> None:
        """Called after each update, with the smoothed loss."""

    def finished(self, credit: str, trial: Trial) -> None:
        """Called with the result of each run."""


def compare(
    task: str | Task = "copy",
    credits: Sequence[Any] = (),
    *,
    seeds: int = 3,
    cell: str = "lstm",
    hidden: int = 64,
    layers: int = 1,
    learning_rate: float = 0.01,
    updates: int | None = None,
    max_minutes: float | None = None,
    memory: str | Memory | None = None,
    threads: int | None = 1,
    target: float | None = None,
    watch: ComparisonWatch | None = None,
    stop: Stop = lambda: None,
    **options: Any,
) -> Comparison:
    """Train the same network under several credits.

    For each seed all credits begin with the same weights and see the same batches. The optimizer is
    Adam, the gradient's norm is clipped to 1, an LSTM's forget gates begin with a bias of 1. A run
    on a task counts as solved when the mean loss of its last 50 batches reaches the target, and
    ends when it has stayed there for 100 updates. The batches are never repeated, so this is a
    test loss.

    Args:
        task: one of :data:`bptt.data.TASKS`, by name or as an object; or a text: a file, a folder,
            or ``"python"`` for the text inside this Python installation.
        credits: spellings for :func:`bptt.credit.parse`, or credits; by default the exact one and
            three others, one of which is shorter than the task's lag.
        seeds: the number of runs of each credit.
        cell: one of :data:`bptt.cells.CELLS`, spelled as on the command line: ``"lstm"``; or one of
            your own, as ``"module.CELL"``, which is imported.
        hidden: the number of units per layer.
        layers: the number of layers.
        learning_rate: Adam's learning rate.
        updates: the most updates per run; 3,000 by default, 400 for a text.
        max_minutes: a time limit for all runs; each run may take an equal share of the rest.
        memory: what a backward pass keeps, as :func:`bptt.memory.parse` reads it.
        threads: CPU threads; small networks do not get faster with more. None: torch's setting.
        target: the loss, or for a text perplexity, to reach. By default a tenth of the loss of a
            model without memory; for a text 5 % above the exact credit's last perplexity.
        watch: callbacks for the progress.
        stop: called after each update; if it returns a reason, the finished runs are the result.
        options: the task's options; for a text those of :class:`bptt.language_model.Config`.

    Raises:
        ConfigError: options are unknown, out of range, or contradict each other.
        CorpusError: the text cannot be used.

    >>> from bptt.comparison import compare
    >>> found = compare("copy", ["full", "truncated:3"], seeds=1, updates=2, hidden=4, lag=5)
    >>> first, second = (credit.trials[0].losses for credit in found.credits)
    >>> first[0] == second[0]  # the same weights, the same batch
    True
    """
    kind = _kind(task)
    _check_counts(seeds=seeds, hidden=hidden, layers=layers, updates=updates, threads=threads)
    check_cell(cell)
    reals = {"learning_rate": learning_rate, "max_minutes": max_minutes, "target": target}
    for name, value in reals.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{spelled(name)} must be above 0 and finite, got {value}")
    network = {"cell": cell, "hidden": hidden, "layers": layers, "learning_rate": learning_rate}
    course = _Course(seeds, max_minutes, watch or ComparisonWatch(), stop)
    with _threads(threads), torch.random.fork_rng(devices=[]):
        if kind is None:
            return _on_text(str(task), credits, network, updates, memory, target, course, options)
        return _on_task(task, credits, network, updates, memory, target, course, options)


_MOST = {"seeds": 10**6, "hidden": 10**6, "layers": 1000, "updates": 10**9, "threads": 1024}


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and not 1 <= value <= _MOST[name]:
            raise ConfigError(f"{spelled(name)} must be from 1 to {_MOST[name]}, got {value}")


def _kind(task: str | Task) -> str | None:
    """Return the name of a task; None if it is a text."""
    if isinstance(task, Task):
        names = {kind: name for name, kind in TASKS.items()}
        return names.get(type(task), type(task).__name__)
    if task in TASKS:
        return task
    if task == BUILT_IN or expanded(task).exists():
        return None
    raise ConfigError(
        f"there is neither a task nor a file {task}: the tasks are {', '.join(TASKS)}; a text is "
        f"a file, a folder, or {BUILT_IN} for the text inside this Python installation"
    )


@dataclass
class _Course:
    """The order of the runs: all credits with the first seed, then all with the second..."""

    seeds: int
    max_minutes: float | None
    watch: ComparisonWatch
    stop: Stop
    stopped: bool = False

    def run(
        self,
        spellings: Sequence[str],
        updates: int,
        train: Callable[[str, int, float], Trial | None],
    ) -> dict[str, list[Trial]]:
        """Run ``train(credit, seed, until)`` for all of them, or until stopped."""
        found: dict[str, list[Trial]] = {s: [] for s in spellings}
        runs = [(spelling, seed) for seed in range(self.seeds) for spelling in spellings]
        began = time.monotonic()
        for number, (spelling, seed) in enumerate(runs):
            self.watch.begun(spelling, seed, number, len(runs), updates)
            trial = train(spelling, seed, self._until(began, len(runs) - number))
            if trial is None:
                self.stopped = True
                break
            found[spelling].append(trial)
            self.watch.finished(spelling, trial)
        return {s: trials for s, trials in found.items() if trials}

    def _until(self, began: float, left: int) -> float:
        if self.max_minutes is None:
            return math.inf
        now = time.monotonic()
        return now + max(0.0, began + 60 * self.max_minutes - now) / left


def _on_task(
    task: str | Task,
    credits: Sequence[Any],
    network: dict[str, Any],
    updates: int | None,
    memory: str | Memory | None,
    target: float | None,
    course: _Course,
    options: dict[str, Any],
) -> Comparison:
    name = _kind(task)
    assert name is not None
    if isinstance(task, Task) and options:
        raise ConfigError(f"the task is made already: set {', '.join(options)} when you make it")
    asked = task if isinstance(task, Task) else make_task(task, **options)
    made = _credits(credits or default_credits(asked.lag))
    memory = parse_memory(memory) if isinstance(memory, str) else memory
    setting = TaskSetting(
        asked,
        network["cell"],
        network["hidden"],
        network["layers"],
        network["learning_rate"],
        updates or UPDATES,
        asked.target if target is None else target,
        memory,
    )
    last: dict[str, Any] = {}

    def train(spelling: str, seed: int, until: float) -> Trial | None:
        credit = copy.deepcopy(made[spelling])
        last.setdefault(spelling, credit)
        return TaskTraining(setting, credit, seed).train(course.watch.updated, course.stop, until)

    trials = course.run(list(made), setting.updates, train)
    return Comparison(
        task=name,
        options={f.name: getattr(asked, f.name) for f in fields(asked) if f.name != "seed"},
        conditions=_conditions(network, setting.updates, memory),
        steps=asked.steps,
        lag=asked.lag,
        baseline=asked.baseline,
        target=setting.target,
        window=WINDOW,
        is_text=False,
        seeds=course.seeds,
        credits=_results(trials, last, asked.steps, asked.batch_size),
        notes=list(_notes(asked, made)),
        interrupted=course.stopped,
    )


def _notes(task: Task, credits: dict[str, Any]) -> Iterator[str]:
    goes_on = "steps" in {f.name for f in fields(task)}  # windows of a stream
    if not goes_on:
        return
    yield (
        f"The state is carried from window to window, the gradient is not: each credit plans "
        f"within windows of {task.steps} steps."
    )
    cut = [s for s, c in credits.items() if getattr(c, "history", 0)]
    if cut:
        yield (
            f"{', '.join(cut)} would reach into the previous window, which is not run again here: "
            f"the first losses of a window reach less far."
        )


def _on_text(
    source: str,
    credits: Sequence[Any],
    network: dict[str, Any],
    updates: int | None,
    memory: str | Memory | None,
    target: float | None,
    course: _Course,
    options: dict[str, Any],
) -> Comparison:
    from bptt._src.comparison import texts
    from bptt.language_model import Config

    for option in options:
        if option not in texts.OPTIONS:
            raise ConfigError(
                f"a text has no option {spelled(option)}; it has "
                + ", ".join(map(spelled, texts.OPTIONS))
            )
    corpus = () if source == BUILT_IN else (source,)
    config = Config(
        corpus=corpus,
        memory=memory if memory is None or isinstance(memory, str) else memory.spelling,  # type: ignore[attr-defined]
        **{**texts.default_options(options.get("level")), **network, **options},
    )
    assert config.steps is not None
    made = _credits(credits or default_credits(config.steps))
    for spelling in made:
        parse(spelling)  # checked here; each run parses it anew
    baseline, unknown = texts.unigram_loss(config)
    most = updates or UPDATES_OF_TEXT
    last: dict[str, Any] = {}

    def train(spelling: str, seed: int, until: float) -> Trial | None:
        trial, credit = texts.train_text(
            config, spelling, seed, most, course.watch.updated, course.stop, until
        )
        last.setdefault(spelling, credit)
        return trial

    results = _results(course.run(list(made), most, train), last, config.steps, config.batch_size)
    return Comparison(
        task=source,
        options={name: getattr(config, name) for name in texts.OPTIONS},
        conditions=_conditions(network, most, memory),
        steps=config.steps,
        lag=None,
        baseline=baseline,
        target=_enough(results) if target is None else math.log(target),
        window=1,
        is_text=True,
        seeds=course.seeds,
        credits=results,
        notes=[
            f"The text is read in windows of {config.steps} steps, shuffled, each from a zero "
            "state, so that all credits see the same batches; the held-out part is read as one.",
            f"{100 * unknown:.1f} % of the held-out tokens are unknown.",
        ],
        interrupted=course.stopped,
    )


def _enough(results: list[CreditResult]) -> float:
    """The loss that counts as solved: slightly above that of the exact credit, or the best one."""
    exact = [r for r in results if r.plans.exact][:1] or results
    ends = [[t.losses[-1] for t in r.trials if t.ended != "diverged" and t.losses] for r in exact]
    best = min((sum(e) / len(e) for e in ends if e), default=0.0)
    return best + math.log(ENOUGH)


def default_credits(lag: int) -> list[str]:
    """The credits that are compared by default.

    The truncation is half as long as the lag, so that it cannot reach the answer. The random
    pieces are as long as the lag on average: pieces half as long learn it too, but need three times
    as many updates with some seeds.
    """
    return ["full", f"truncated:{max(2, lag // 2)}", f"randomized:{lag}", "adaptive:0.5"]


def _credits(given: Sequence[Any]) -> dict[str, Any]:
    """Return credits by their spelling."""
    made: dict[str, Any] = {}
    for one in given:
        credit = parse(one) if isinstance(one, str) else one
        spelling = one.strip() if isinstance(one, str) else getattr(one, "spelling", repr(one))
        if spelling in made:
            raise ConfigError(f"the credit {spelling} is given twice: leave one of them out")
        made[spelling] = credit
    return made


def _results(
    trials: dict[str, list[Trial]], credits: dict[str, Any], steps: int, batch: int
) -> list[CreditResult]:
    results = []
    for spelling, found in trials.items():
        plans = plans_of(credits[spelling], steps, batch, generator_of(0, 4))
        results.append(CreditResult(spelling, plans, found))
    return results


def _conditions(
    network: dict[str, Any], updates: int, memory: str | Memory | None
) -> dict[str, Any]:
    spelt = memory if isinstance(memory, str | None) else getattr(memory, "spelling", repr(memory))
    return {**network, "optimizer": "adam", "clip": CLIP, "updates": updates, "memory": spelt}


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
