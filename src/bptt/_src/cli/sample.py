"""``bptt sample``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from bptt._src.cli.places import AllowCode
from bptt._src.cli.terminal import echo
from bptt.errors import ConfigError
from bptt.language_model import LanguageModel


def sample(
    run: Annotated[Path, typer.Argument(help="the run's directory", show_default=False)],
    prompt: Annotated[str, typer.Option(help="the text to go on with")] = "",
    length: Annotated[int, typer.Option(help="tokens to add")] = 200,
    temperature: Annotated[
        float, typer.Option(help="below 1 likelier text, above 1 wilder; 0: always the likeliest")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="draw from the k likeliest tokens", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="draw from the likeliest tokens that make up p", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="makes the sample repeatable", show_default=False)
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive", help="read prompts line by line, and go on with each, until Ctrl-D"
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
    allow_code: AllowCode = False,
) -> None:
    """Print text drawn from a run's best model, as it is drawn.

    On a terminal, control characters in it are shown as escapes, such as
    \\x1b; into a file or a pipe it goes as it is.
    """
    if interactive and prompt:
        raise ConfigError(
            "--prompt has no effect beside --interactive, which reads the prompts: leave --prompt "
            "out"
        )
    to_terminal = sys.stdout.isatty()
    model = LanguageModel.load(run, device=device, allow_code=allow_code)
    options = {"length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    for text in _prompts() if interactive else [prompt]:
        for piece in model.sample_stream(text, **options, seed=seed):
            echo(piece, end="", raw=not to_terminal)
        echo("")


def _prompts() -> Iterator[str]:
    """The lines of standard input; on a terminal each is asked for."""
    asks = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  # so that input() lets a line be edited
    while sys.stdin is not None:
        try:
            yield input("> " if asks else "")
        except EOFError:
            return


command = sample
