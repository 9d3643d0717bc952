"""``bptt flow``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer

from bptt._src.atomic import write_whole
from bptt._src.cli.places import STANDARD_OUTPUT, AllowCode, Json, Page, Picture, check_places
from bptt._src.cli.terminal import echo
from bptt._src.language_model.flow import flow_of
from bptt._src.language_model.initialising import check_initial
from bptt._src.language_model.model import check_device
from bptt._src.language_model.monitor import window_of
from bptt._src.language_model.session import text_of_run
from bptt._src.language_model.setup import initialised
from bptt._src.networks import NAMES, NONLINEARITIES, is_own_cell, title
from bptt._src.together import Table, With, check_together
from bptt.data import Corpus, Tokenizer, Tokens, encode_corpus, encode_text, open_corpus
from bptt.errors import ConfigError
from bptt.flow import GradientFlow
from bptt.language_model import Config, LanguageModel, Run

TOGETHER: Table = {
    **dict.fromkeys(("column", "encoding"), With(("file",))),
    **dict.fromkeys(("hidden", "layers", "seed", "init", "radius"), With(("cell",))),
}

SENTENCES = {
    "short": "Jane opened the door. John came in behind her. Jane smiled at John",
    "long": "Jane opened the door. John came in behind her. Outside it had begun to rain, and the "
    "last people were hurrying home across the square with their collars up. Jane smiled at John",
}
"""The same last word, with a short way back to where it was said before, and with a long one."""

MOST_TOKENS = 5000  # all pairs of them take 2 GB


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
    column: Annotated[
        str | None,
        typer.Option(help="the column of --file, a CSV or TSV file", show_default=False),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="the encoding of --file", show_default=False)
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="how many tokens to predict, at most")
    ] = 100,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help=f"instead of runs an untrained network: {', '.join(NAMES)}; rnn with its "
            "nonlinearity, as rnn:relu; or your own as module.CELL; may be given several times",
            show_default=False,
        ),
    ] = None,
    nonlinearity: Annotated[
        list[str] | None,
        typer.Option(
            help=f"of an untrained rnn: {', '.join(NONLINEARITIES)}; may be given several times "
            "(default: tanh)",
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
    init: Annotated[
        str | None,
        typer.Option(
            help="of an untrained network: its recurrent weights (bptt.init): chrono:99, forget:1, "
            "orthogonal, identity",
            show_default=False,
        ),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="of an untrained rnn or rate: the spectral radius of its recurrent weights",
            show_default=False,
        ),
    ] = None,
    html: Page = None,
    json_: Json = None,
    figure: Picture = None,
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
    allow_code: AllowCode = False,
) -> None:
    """Show how far back the gradient of each token's loss reaches, and what to do about it."""
    if bool(runs) == bool(cell):
        raise ConfigError(
            "give the directories of runs, or --cell for an untrained network, not both"
            if runs
            else "give the directory of a run, or --cell for an untrained network: "
            + ", ".join(NAMES)
        )
    if allow_code and not runs:
        raise ConfigError("--allow-code has no effect without a run: leave it out")
    if text is not None and file is not None:
        raise ConfigError("give --text or --file, not both")
    given = {
        **{"file": file, "column": column, "encoding": encoding},
        **{"cell": cell, "hidden": hidden, "layers": layers, "seed": seed},
        **{"init": init, "radius": radius},
    }
    check_together(TOGETHER, [n for n in TOGETHER if given[n] is not None], given.get)
    if nonlinearity and "rnn" not in (cell or []):
        raise ConfigError("--nonlinearity is of an untrained rnn: give --cell rnn too")
    check_places(html=html, json=json_, figure=figure)
    what = _Text(text, file, column, encoding)
    if runs:
        flows = [_of_run(run, what, tokens, device, allow_code) for run in runs]
    else:
        variants = list(_variants(cell or [], nonlinearity or ["tanh"]))
        options: dict[str, Any] = {
            "hidden": hidden or 100,
            "layers": layers or 1,
            "seed": seed or 0,
        }
        options |= {"init": init, "radius": radius}
        flows = list(_untrained(variants, what, tokens, device, options))
    document = json.dumps([f.to_dict() for f in flows], allow_nan=False) + "\n"
    if str(json_) == STANDARD_OUTPUT:
        echo(document, end="")
    else:
        echo(flows[0].to_text(*flows[1:]))
    if html is not None:
        flows[0].save_html(html, *flows[1:])
    if figure is not None:
        _write_figure(figure, flows)
    if json_ is not None and str(json_) != STANDARD_OUTPUT:
        write_whole(json_, document)


command = flow


# ------------------------------------------------------------------------------- what to look at


class _Text(NamedTuple):
    """The text to look at, if one was given."""

    text: str | None
    file: Path | None
    column: str | None
    encoding: str | None

    def corpus(self) -> Corpus | None:
        """Open the file, where there is one."""
        if self.file is None:
            return None
        return open_corpus([str(self.file)], column=self.column, encoding=self.encoding)

    def encoded(self, tokenizer: Tokenizer, reading: str) -> Tokens | None:
        """Encode what was given."""
        if (corpus := self.corpus()) is not None:
            return encode_corpus(corpus, tokenizer, reading=reading)
        return None if self.text is None else encode_text(self.text, tokenizer, reading=reading)


def _of_run(path: Path, what: _Text, tokens: int, device: str, allow_code: bool) -> GradientFlow:
    run = Run(path)
    model = run.load_model(device, allow_code=allow_code)
    found = what.encoded(model.tokenizer, model.config.reading)
    if found is None:
        found = text_of_run(run).valid
    flow = flow_of(model, found, tokens=tokens, name=Path(os.path.realpath(path)).name)
    norms = [m["gradient_norm"] for m in run.metrics() if m.get("gradient_norm") is not None]
    return replace(
        flow, gradient_norm=median(norms) if norms else None, window=window_of(model.config)
    )


def _variants(cells: list[str], nonlinearities: list[str]) -> Iterator[tuple[str, str]]:
    """Return (cell, nonlinearity) as they were spelled."""
    for spelled in cells:
        name, _, phi = spelled.partition(":")
        chosen = [phi] if phi else nonlinearities if name == "rnn" else ["tanh"]
        if (name not in NAMES and not is_own_cell(name)) or (phi and name != "rnn"):
            raise ConfigError(
                f"--cell must be one of {', '.join(NAMES)}, or rnn with its nonlinearity, as "
                f"rnn:relu, or your own as module.CELL; got {spelled!r}"
            )
        for phi in chosen:
            if phi not in NONLINEARITIES:
                raise ConfigError(
                    f"--nonlinearity must be one of {', '.join(NONLINEARITIES)}, got {phi!r}"
                )
            yield name, phi


def _untrained(
    variants: list[tuple[str, str]],
    what: _Text,
    tokens: int,
    device: str,
    options: dict[str, Any],
) -> Iterator[GradientFlow]:
    """Return flows of networks before training, whose words are those of the text."""
    for cell, phi in variants:
        check_initial(cell, phi, options["init"], options["radius"])
    if (corpus := what.corpus()) is not None:
        texts = {"": "".join(corpus.pieces())}
    else:
        texts = SENTENCES if what.text is None else {"": what.text}
    tokenizer = Tokenizer.train(texts.values(), level="word")
    for (cell, phi), (which, words) in product(variants, texts.items()):
        kind: dict[str, Any] = {"cell": cell, "nonlinearity": phi}
        config = Config(level="word", **kind, **options)
        with torch.random.fork_rng([]):
            torch.manual_seed(config.seed)
            model = initialised(LanguageModel(tokenizer, config)).to(check_device(device))
        layers = "" if config.layers == 1 else f"{config.layers} × "
        name = f"{layers}{_title(cell, phi)} {config.hidden}"
        if config.init is not None:
            name += f", {config.init}"
        if config.radius is not None:
            name += f", radius {config.radius:g}"
        name += f", {which}" if which else ""
        yield flow_of(
            model, encode_text(words, tokenizer, reading="stream"), tokens=tokens, name=name
        )


def _title(cell: str, phi: str) -> str:
    return f"RNN {phi}" if cell == "rnn" else title(cell)


# ------------------------------------------------------------------------------- what is written


def _write_figure(path: Path, flows: list[GradientFlow]) -> None:
    from bptt._src.report.flow import draw_flow  # matplotlib takes its time
    from bptt._src.report.style import as_picture

    write_whole(path, as_picture(draw_flow(*flows), path.suffix.lower()[1:]))
