"""``bptt sample``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bptt._src.cli.places import AllowCode
from bptt._src.cli.terminal import echo
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
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
    allow_code: AllowCode = False,
) -> None:
    """Print text drawn from a run's best model, as it is drawn.

    On a terminal, control characters in it are shown as escapes, such as
    \\x1b; into a file or a pipe it goes as it is.
    """
    to_terminal = sys.stdout.isatty()
    model = LanguageModel.load(run, device=device, allow_code=allow_code)
    pieces = model.sample_stream(
        prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    for piece in pieces:
        echo(piece, end="", raw=not to_terminal)
    echo("")


command = sample
