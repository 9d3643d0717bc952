"""All options of all commands, from the parser itself, and arguments for each to run with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from bptt._src.cli.commands import COMMANDS, Command, load_command

TEXT, RUN = "TEXT", "RUN"  # arguments, in place of the name of an option
LEAVE_OUT = object()


class Offered(NamedTuple):
    """An option or argument of a command."""

    command: str
    name: str
    parameter: Any
    kind: type

    @property
    def flag(self) -> str:
        if self.parameter.param_type_name == "argument":
            return RUN if self.name in ("run", "runs") else TEXT
        return max(self.parameter.opts, key=len)

    @property
    def spellings(self) -> list[str]:
        return [*self.parameter.opts, *self.parameter.secondary_opts]


def loaded() -> dict[str, Command]:
    """The commands; with all that they may import, so that forks need not."""
    import onnxruntime  # noqa: F401
    import torch.onnx._internal.exporter._core  # noqa: F401

    import bptt._src.bench.figure
    import bptt._src.cli.command_line
    import bptt._src.comparison.figure
    import bptt._src.report.audit_figure
    import bptt._src.report.flow  # noqa: F401

    found = {name: load_command(name) for name in COMMANDS}
    found["bench"].make_context("bench", [])  # what typer imports when it reads arguments
    return found


def everything() -> list[Offered]:
    """Every option and argument, but for --help."""
    from importlib import import_module

    found = []
    for name, command in loaded().items():
        hints = get_type_hints(import_module(f"bptt._src.cli.{name}").command)
        found += [Offered(name, p.name, p, _kind(hints[p.name])) for p in command.params]
    return found


def _kind(hint: Any) -> type:
    kinds = [k for k in get_args(hint) if k is not type(None)]
    return _kind(kinds[0]) if kinds else hint


BASE: dict[str, dict[str, Any]] = {
    "train": {
        TEXT: "book.txt",
        **{"--out": "new", "--hidden": 4, "--batch-size": 2, "--steps": 5, "--epochs": 1},
        **{"--threads": 1, "--flow-every": 0, "--save-every": 1e9},
    },
    "evaluate": {RUN: "run"},
    "sample": {RUN: "run", "--length": 12, "--seed": 3},
    "export": {RUN: "run", TEXT: "model.onnx"},
    "flow": {RUN: "run", "--tokens": 6},
    "audit": {TEXT: "loop.py:train", "--module": "rnn"},
    "compare": {
        **{"--credit": "full", "--seeds": 1, "--hidden": 4, "--updates": 2, "--batch-size": 2},
        **{"--lag": 5, "--out": "compared"},
    },
    "bench": {"--only": "kernels", "--quick": None, "--rounds": 1, "--json": "bench.json"},
    "doctor": {},
}
OF_TEXT = {"--task": "book.txt", "--lag": LEAVE_OUT, "--vocabulary": 50, "--steps": 5}


def arguments(command: str, changes: dict[str, Any]) -> list[Any]:
    """Arguments of a command that runs, with some changed."""
    given = {**BASE[command], **changes}
    named: list[Any] = []
    for flag, value in given.items():
        if value is LEAVE_OUT or flag in (TEXT, RUN):
            continue
        for one in value if isinstance(value, list) else [value]:
            named += [flag] if one is None else [flag, one]
    placed = [given[flag] for flag in (RUN, TEXT) if given.get(flag, LEAVE_OUT) is not LEAVE_OUT]
    return [command, *named, *(["--", *placed] if placed else [])]


LOOP = """
import numpy as np
import torch

torch.manual_seed(0)
rnn, other, head = torch.nn.LSTM(3, 4), torch.nn.GRU(3, 4), torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.1)
rnn.kept = None
whole, parts = np.zeros(8, int), np.arange(8) // 4


def label(x):
    return np.array([1, 0]), 10 + np.arange(len(x))[:, None]


def train(k=4):
    state = None
    for x in torch.randn(8, 2, 3).split(k):
        y, (h, c) = rnn(x, state)
        optimizer.zero_grad()
        (head(y).square().mean() + other(x)[0].mean()).backward()
        optimizer.step()
        state = h.detach(), c.detach()


def by_twos():
    train(2)


def long():
    for _ in range(12):
        train(2)
"""
"""A script for bptt audit."""


OWN_CELL = """
import torch
import bptt

def equations(x, h, state, units):
    return (0.5 * state[0] + 0.5 * torch.tanh(x[0] + h[0]),)

LEAKY = bptt.Cell("LEAKY", 1, 1, equations)
MIXES = bptt.Cell("MIXES", 1, 1, lambda x, h, s, u: (torch.softmax(x[0] + h[0], -1),))
NUMBER = 7
"""
"""A module with a cell of its own, and with what is none."""


def make_world(where: Path) -> None:
    """Texts, a table, and a run that has been trained."""
    from bptt.language_model import Config, train

    people = ["John", "Jane", "Mary", "Anne"]
    story = "".join(
        f"{people[i % 4]} greets {people[(i * i + 1) % 4]} again. So it goes.\n" for i in range(60)
    )
    (where / "book.txt").write_text(story)
    (where / "other.txt").write_text(story.replace("greets", "sees"))
    (where / "old.txt").write_bytes(story.replace("Jane", "Jané").encode("latin-1"))
    rows = "".join(f"{a},{b}\n" for a, b in zip(story.split("\n"), "xyz" * 40, strict=False))
    (where / "table.csv").write_text("a,b\n" + rows.replace(",x", ",one two three four five"))
    (where / "options.json").write_text(json.dumps({"layers": 2}))
    (where / "mine.py").write_text("")
    (where / "loop.py").write_text(LOOP)
    (where / "folder").mkdir()
    options = {"hidden": 6, "steps": 5, "epochs": 1, "batch_size": 2, "threads": 1}
    config = Config(corpus=(str(where / "book.txt"),), level="char", flow_every=0, **options)
    train(config, where / "run")


def make_bench_small() -> None:
    """Let bench and doctor measure next to nothing; in a process that ends after it."""
    from matplotlib.figure import Figure

    import bptt._src.bench.jobs as everything
    import bptt._src.bench.search
    import bptt._src.comparison.figure
    from bptt._src.bench import jax_scan
    from bptt._src.bench.shapes import ModelShape, Shape
    from bptt._src.doctor import checkup
    from bptt.bench import Limits, Start

    tiny = ModelShape("rnn", 1, vocabulary=20, hidden=4, batch=1, steps=4)
    everything.MODELS, everything.SHAPES = (tiny,), (Shape(3, 2, 4, 5),)
    bptt._src.bench.search.RANGES = ((2, 4), (1, 3), (1, 9), (6, 9))
    everything.measure_limits = lambda seconds: Limits(10.0, None, {"mm 8": 5.0})
    everything.measure_start = lambda: Start(None, 2.0, 1.0)
    jax_scan.load = lambda threads: (None, "JAX is not installed")
    bptt._src.comparison.figure.draw_comparison = lambda found: Figure()
    checkup.TRIAL = f"from bptt._src.doctor import trial; trial.SECONDS = 0; {checkup.TRIAL}"
