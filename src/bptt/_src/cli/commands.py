"""The commands by name, each loaded when it is used; and what all of them refuse."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from bptt._src.cli.interrupts import Interrupts
from bptt._src.cli.running import rank_here
from bptt.errors import ConfigError, ElsewhereError

COMMANDS = {
    "train": "Train a recurrent language model on a text.",
    "evaluate": "Measure how well a run's best model predicts a text.",
    "sample": "Print text drawn from a run's best model, as it is drawn.",
    "export": "Write a run's best model as a file of ONNX, and check it.",
    "flow": "Show how far back the gradient of each token's loss reaches, and what to do about it.",
    "audit": "Show which losses a training loop credits to which steps, and what its state "
    "remembers.",
    "compare": "Compare ways of assigning credit: same task, weights and batches, trained with "
    "each.",
    "bench": "Measure training: ours, torch.nn, JAX if it is installed, and the processor's own "
    "limits.",
    "doctor": "Show what runs on this machine, what is missing and what it costs, and what to do.",
}
"""The first line of each one's help, here so that ``bptt --help`` need not load torch."""

MAY_BE_EMPTY = {"prompt"}
NAMES_OF_FILES = {"corpus", "valid", "tokenizer", "task", "target"}
"""Parameters that are strings, because they need not be the names of files."""


class Command(TyperCommand):
    """A command that refuses what would be ignored, or could not be used, whatever it means."""

    files: frozenset[str] = frozenset()
    """The parameters that are names of files, whose bytes may be any."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at what was given, then do what any command does."""
        if not ctx.resilient_parsing:
            given, _, order = self.make_parser(ctx).parse_args(list(args))
            _refuse_repeated(order)
            for parameter in self.get_params(ctx):
                for value in _texts(given.get(parameter.name)):
                    self._check_text(parameter, value)
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; from here on there is something that an interrupt must put away."""
        if isinstance(ctx.obj, Interrupts):
            ctx.obj.working()
        several = os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ
        if several and self.name != "train":
            if rank_here():
                raise ElsewhereError("rank 0 refuses it")
            raise ConfigError(f"bptt {self.name} runs in one process: start it without torchrun")
        return super().invoke(ctx)

    def _check_text(self, parameter: Any, value: str) -> None:
        named = flag_of(parameter)
        if not value and parameter.name not in MAY_BE_EMPTY:
            raise ConfigError(f"{named} is empty: give a value, or leave it out")
        if parameter.name in self.files:
            return
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{named} is not valid UTF-8: got {value}") from None


def _refuse_repeated(order: list[Any]) -> None:
    """Refuse an option that is given twice and takes one value: one would be ignored."""
    for parameter, times in Counter(order).items():
        single = not getattr(parameter, "multiple", False) and parameter.nargs == 1
        if times > 1 and single and not parameter.is_eager:
            named = " or ".join([*parameter.opts, *parameter.secondary_opts])
            raise ConfigError(f"{named} was given {times} times: give it once")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (v for v in value if isinstance(v, str))


def flag_of(parameter: Any) -> str:
    """What a user types for a parameter: ``--hidden``, or RUN of an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.name.upper())
    return str(max(parameter.opts, key=len))


def load_command(name: str) -> Command:
    """Import a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    module = import_module(f"bptt._src.cli.{name}")
    kind = getattr(module, "COMMAND", Command)  # a command may parse in its own way
    app.command(name, cls=kind)(module.command)
    loaded = typer.main.get_command(app)
    assert isinstance(loaded, Command)
    hints = get_type_hints(module.command).items()
    loaded.files = frozenset(NAMES_OF_FILES | {n for n, hint in hints if _is_path(hint)})
    return loaded


def _is_path(hint: Any) -> bool:
    return hint is Path or any(map(_is_path, get_args(hint)))


class Group(TyperGroup):
    """``bptt``, whose commands are loaded when they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what stands in the list for a command."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is meant, and load it."""
        name, _, rest = super().resolve_command(ctx, args)
        assert name is not None
        return name, load_command(name), rest
