"""``bptt flow``."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bptt.data import Tokenizer, Tokens, encode_corpus, encode_text, open_corpus
from bptt.errors import ConfigError
from bptt.files import write_whole
from bptt.flow import GradientFlow
from bptt.language_model import Config, LanguageModel, Run
from bptt.language_model.flow import flow_of
from bptt.language_model.model import check_device
from bptt.language_model.session import text_of_run

SENTENCES = {
    "short": "Jane opened the door. John came in behind her. Jane smiled at John",
    "long": "Jane opened the door. John came in behind her. Outside it had begun to rain, and the "
    "last people were hurrying home across the square with their collars up. Jane smiled at John",
}
"""The same last word, with a short way back to where it was said before, and with a long one."""

CELLS = ("rnn", "gru", "lstm")
NONLINEARITIES = ("tanh", "sigmoid", "relu")
HEAD = ("", "steps", "loss", "horizon", "decay a step", "suggested reach", "verdict")
WIDTH = 100  # columns of what is printed


def flow(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="directories of runs, to be shown side by side", show_default=False),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="the text to look at (default: the beginning of the run's own validation text; "
            "of untrained networks two sentences)",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="a file with the text, in its place", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens to predict, at most")] = 100,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="instead of runs an untrained network: rnn, gru, lstm, or rnn with its "
            "nonlinearity, as rnn:relu; may be given several times",
            show_default=False,
        ),
    ] = None,
    nonlinearity: Annotated[
        list[str] | None,
        typer.Option(
            help="of an untrained rnn: tanh, sigmoid, relu; may be given several times (default: "
            "tanh)",
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[
        int | None,
        typer.Option(
            min=1, help="of an untrained network: its units (default: 100)", show_default=False
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="of an untrained network: its layers (default: 1)", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="of an untrained network: draws its weights (default: 0)", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="write a page to look at", show_default=False)
    ] = None,
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json", help="write all of it as JSON; - prints nothing else", show_default=False
        ),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="write a picture: .png, .svg or .pdf", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
) -> None:
    """Show how far back the gradient of each token's loss reaches, and what to do about it."""
    if bool(runs) == bool(cell):
        raise ConfigError(
            "give the directories of runs, or --cell for an untrained network, not both"
            if runs
            else "give the directory of a run, or --cell rnn, gru or lstm for an untrained network"
        )
    if text is not None and file is not None:
        raise ConfigError("give --text or --file, not both")
    if nonlinearity and "rnn" not in (cell or []):
        raise ConfigError("--nonlinearity is of an untrained rnn: give --cell rnn too")
    for option, given in (("--hidden", hidden), ("--layers", layers), ("--seed", seed)):
        if runs and given is not None:
            raise ConfigError(
                f"{option} is of an untrained network: a run has its own; leave it out"
            )
    _check_places(html, json_, figure)
    if runs:
        flows = [_of_run(run, text, file, tokens, device) for run in runs]
    else:
        variants = list(_variants(cell or [], nonlinearity or ["tanh"]))
        options = {"hidden": hidden or 100, "layers": layers or 1, "seed": seed or 0}
        flows = list(_untrained(variants, text, file, tokens, device, options))
    if html is not None:
        flows[0].save_html(html, *flows[1:])
    if figure is not None:
        _write_figure(figure, flows)
    if json_ is not None:
        document = json.dumps([f.to_dict() for f in flows], allow_nan=False) + "\n"
        if str(json_) == "-":
            typer.echo(document, nl=False)
            return
        write_whole(json_, document)
    typer.echo(describe(flows))


# ------------------------------------------------------------------------------- what to look at


def _of_run(
    path: Path, text: str | None, file: Path | None, tokens: int, device: str
) -> GradientFlow:
    run = Run(path)
    model = run.load_model(device)
    if text is None and file is None:
        found = text_of_run(run).valid
    else:
        found = _encoded(text, file, model.tokenizer, model.config.reading)
    return flow_of(model, found, tokens=tokens, name=path.resolve().name)


def _encoded(text: str | None, file: Path | None, tokenizer: Tokenizer, reading: str) -> Tokens:
    if file is not None:
        return encode_corpus(open_corpus([str(file)]), tokenizer, reading=reading)
    return encode_text(text or "", tokenizer, reading=reading)


def _variants(cells: list[str], nonlinearities: list[str]) -> Iterator[tuple[str, str]]:
    """Give (cell, nonlinearity) as they were spelled."""
    for spelled in cells:
        name, _, phi = spelled.partition(":")
        chosen = [phi] if phi else nonlinearities if name == "rnn" else ["tanh"]
        if name not in CELLS or (phi and name != "rnn"):
            raise ConfigError(
                f"--cell must be rnn, gru, lstm, or rnn with its nonlinearity, as rnn:relu; got "
                f"{spelled!r}"
            )
        for phi in chosen:
            if phi not in NONLINEARITIES:
                raise ConfigError(
                    f"--nonlinearity must be one of {', '.join(NONLINEARITIES)}, got {phi!r}"
                )
            yield name, phi


def _untrained(
    variants: list[tuple[str, str]],
    text: str | None,
    file: Path | None,
    tokens: int,
    device: str,
    options: dict[str, Any],
) -> Iterator[GradientFlow]:
    """Give flows of networks as they are before training, whose words are those of the text."""
    if file is not None:
        texts = {"": "".join(open_corpus([str(file)]).pieces())}
    else:
        texts = SENTENCES if text is None else {"": text}
    tokenizer = Tokenizer.train(texts.values(), level="word")
    for (cell, phi), (which, words) in product(variants, texts.items()):
        kind: dict[str, Any] = {"cell": cell, "nonlinearity": phi}
        config = Config(level="word", **kind, **options)
        with torch.random.fork_rng([]):
            torch.manual_seed(config.seed)
            model = LanguageModel(tokenizer, config).to(check_device(device))
        layers = "" if config.layers == 1 else f"{config.layers} × "
        name = f"{layers}{_title(cell, phi)} {config.hidden}"
        name += f", {which}" if which else ""
        yield flow_of(
            model, encode_text(words, tokenizer, reading="stream"), tokens=tokens, name=name
        )


def _title(cell: str, phi: str) -> str:
    return f"RNN {phi}" if cell == "rnn" else cell.upper()


# ------------------------------------------------------------------------------- what is written


def _check_places(html: Path | None, json_: Path | None, figure: Path | None) -> None:
    """See to it, before anything is measured, that all that is to be written has its own place."""
    given = (("--html", html), ("--json", json_), ("--figure", figure))
    taken: dict[Path, str] = {}
    for option, path in given:
        if path is None or (option == "--json" and str(path) == "-"):
            continue
        if str(path) == "-":
            raise ConfigError(f"{option} -: only --json writes to the standard output; give a file")
        if option == "--figure" and _format(path) not in ("png", "svg", "pdf"):
            raise ConfigError(f"--figure {path}: expected a name that ends in .png, .svg or .pdf")
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise ConfigError(f"{other} and {option} are the same file, {path}: give two")


def _format(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _write_figure(path: Path, flows: list[GradientFlow]) -> None:
    from bptt.report.flow import draw_flow  # matplotlib takes its time

    picture = io.BytesIO()
    draw_flow(*flows).savefig(picture, format=_format(path))
    write_whole(path, picture.getvalue())


def describe(flows: list[GradientFlow]) -> str:
    """Write flows as plain text: a table, and for each its verdict and what to do."""
    rows: list[tuple[str, ...]] = [HEAD, *map(_row, flows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]])
        for row in rows
    ]
    for f in flows:
        lines += ["", *_wrapped(f"{f.name}: {f.verdict.words}")]
        for a in f.advice:
            lines += _wrapped(f"{a.text} [{a.source}]", "  - ")
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _row(f: GradientFlow) -> tuple[str, ...]:
    horizon, decay, reach = f.horizon(), f.decay, f.suggest_truncation()
    words: list[Any] = [
        f.name,
        f.steps,
        f"{f.losses.mean():.3f}",
        "-" if horizon is None else f"{'' if f.settles() else '≥ '}{horizon}",
        "-" if decay is None else f"{decay.beta:.3f} ± {decay.error:.3f}",
        "-" if reach is None else reach,
        f.verdict.kind,
    ]
    return tuple(map(str, words))
