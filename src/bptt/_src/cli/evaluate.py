"""``bptt evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bptt._src.atomic import write_whole
from bptt._src.cli.display import shown
from bptt._src.cli.places import STANDARD_OUTPUT, AllowCode, check_places
from bptt._src.cli.terminal import echo
from bptt._src.controls import on_one_line
from bptt._src.language_model.score import beside, warn_of_unknown
from bptt._src.language_model.session import text_of_run
from bptt._src.together import Table, With, check_together
from bptt.data import encode_corpus, open_corpus
from bptt.errors import ConfigError
from bptt.language_model import LanguageModel, Run, Score
from bptt.language_model import evaluate as measure

TOGETHER: Table = {"column": With(("corpus",)), "encoding": With(("corpus",))}


def evaluate(
    run: Annotated[Path, typer.Argument(help="the run's directory", show_default=False)],
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            help="a text, as for bptt train; nothing: the run's own validation text",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="the column of a CSV or TSV file", show_default=False)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="the text's encoding", show_default=False)
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, max=10**9, help="how much is computed at a time; the figure does not change"
        ),
    ] = 20,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="read a stream as so many parts side by side, each from a zero state: faster, and "
            "another figure (default: 1)",
            show_default=False,
        ),
    ] = None,
    per_token: Annotated[
        bool,
        typer.Option(
            "--per-token", help="print the loss of each token too, and write it into the JSON"
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
    allow_code: AllowCode = False,
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json", help="write it as JSON too; - prints nothing else", show_default=False
        ),
    ] = None,
) -> None:
    """Measure how well a run's best model predicts a text."""
    given = {"column": column, "encoding": encoding, "corpus": corpus}
    check_together(TOGETHER, [n for n in TOGETHER if given[n] is not None], given.get)
    check_places(json=json_)
    directory = Run(run)
    model = directory.load_model(device, allow_code=allow_code)
    reading = model.config.reading
    if streams is not None and reading != "stream":
        raise ConfigError(
            f"--streams is for a run that reads its text as a stream, and {run} reads {reading}: "
            "leave --streams out"
        )
    if corpus:
        text = open_corpus(corpus, column=column, encoding=encoding)
        name, tokens = text.name, encode_corpus(text, model.tokenizer, reading=reading)
    else:
        prepared = text_of_run(directory)
        name, tokens = f"the validation part of {prepared.name}", prepared.valid
    how = {"batch_size": batch_size, "steps": 25 * batch_size, "streams": streams or 1}
    score = measure(model, tokens, **how, per_token=per_token)
    warn_of_unknown(score.unknown_share, name, model.tokenizer.level)
    each = _each(model, score)
    found = {"run": str(run), "text": name, **score.to_dict()}
    document = json.dumps(found, indent=2) + "\n"
    if per_token:
        document = json.dumps({**found, "per_token": each}) + "\n"
    if str(json_) == STANDARD_OUTPUT:
        echo(document, end="")
        return
    echo(
        f"text                {name}\n"
        f"loss                {score.loss:.4f} nats per token\n"
        f"perplexity          {shown(score.perplexity)} per token"
        f"{beside(score.unknown_share)}, "
        f"{shown(score.word_perplexity)} per word\n"
        f"bits per character  {score.bits_per_character:.4f}\n"
        f"counted             {score.tokens:,} tokens predicted, {score.unknown:,} of them "
        f"unknown, {score.words:,} words, {score.characters:,} characters\n"
        f"protocol            {score.protocol}"
    )
    for token, nats in each:
        echo(f"{nats:9.4f}  {on_one_line(token)}")
    if json_ is not None:
        write_whole(json_, document)


def _each(model: LanguageModel, score: Score) -> list[tuple[str, float]]:
    """Each predicted token as the vocabulary spells it, and its loss in nats."""
    if score.losses is None or score.targets is None:
        return []
    words = map(model.tokenizer.token, score.targets.tolist())
    return list(zip(words, score.losses.tolist(), strict=True))


command = evaluate
