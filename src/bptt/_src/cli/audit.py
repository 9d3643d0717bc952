"""``bptt audit``."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import bptt
from bptt._src.atomic import write_whole
from bptt._src.cli.places import STANDARD_OUTPUT, Json, Page, Picture, check_places
from bptt._src.cli.script import Script
from bptt._src.cli.terminal import echo
from bptt.credit import parse
from bptt.errors import BpttError, ConfigError


def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SCRIPT.py:FUNCTION",
            help="a function without arguments that trains, in a file of Python",
            show_default=False,
        ),
    ],
    module: Annotated[
        str,
        typer.Option(
            help="the recurrent module: a name in the script and a path from there, as "
            "model.encoder.rnn; or its class, as torch.nn.LSTM, where it is made within the "
            "function",
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="how many steps to record, at most")] = 256,
    expect: Annotated[
        str | None,
        typer.Option(
            help="the credit that it should be, as full or truncated:20", show_default=False
        ),
    ] = None,
    episodes: Annotated[
        str | None,
        typer.Option(
            help="a name in the script: the number of each step's episode, or where episodes "
            "start, [T] or [T, B]; or a function of the module's input that returns them",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="a name in the script: a function of the module's input that returns which "
            "stream and which step each of it is",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="an attribute in which the module keeps its state; may be given several times",
            show_default=False,
        ),
    ] = None,
    html: Page = None,
    json_: Json = None,
    figure: Picture = None,
) -> None:
    """Show which losses a training loop credits to which steps, and what its state remembers.

    The script is loaded, as a module that is imported is, and its function
    is called once; some updates are enough. Nothing of it has to be changed.
    The status is 1 if there is a fault, or if the credit is not the expected
    one; facts leave it 0.

    \b
    bptt audit train.py:main --module model.rnn
    bptt audit train.py:main --module torch.nn.LSTM --expect truncated:20
    bptt audit agent.py:update --module policy.gru --episodes starts --html audit.html
    """
    check_places(html=html, json=json_, figure=figure)
    _check_credit(expect)
    only_json = str(json_) == STANDARD_OUTPUT
    with ExitStack() as stack:
        if only_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        script = Script(target)
        model, path = script.module(module)
        options: dict[str, Any] = {
            "steps": steps,
            "label": label and script.named(label, f"--label {label}"),
            "episodes": episodes and script.named(episodes, f"--episodes {episodes}"),
            "state": tuple(state) if state else None,
        }
        report = script.running(lambda run: bptt.audit(run, model, path, **options))
    compared = None if expect is None else _compare(report, expect)
    _write(report, compared, target, html, json_, figure)
    if wrong := _wrong(report, compared):
        raise BpttError(f"{target}: {wrong}")


command = audit


def _check_credit(expect: str | None) -> None:
    """Refuse what is no credit before the work."""
    try:
        if expect is not None:
            parse(expect)
    except ConfigError as e:
        raise ConfigError(f"--expect: {e}") from None


def _compare(report: bptt.Audit, expect: str) -> Any:
    try:
        return report.is_(expect)
    except ValueError as e:
        said = str(e).removeprefix("Audit.is_: ")
        raise ConfigError(f"--expect {expect}: {said}") from None


def _wrong(report: bptt.Audit, compared: Any) -> str:
    """What makes the status 1."""
    found = []
    if report.faults:
        kinds = ", ".join(dict.fromkeys(f.kind for f in report.faults))
        number = len(report.faults)
        found.append(f"{number} {'fault' if number == 1 else 'faults'} ({kinds})")
    if compared is not None and not compared:
        found.append(str(compared))
    return "; ".join(found)


def _write(
    report: bptt.Audit,
    compared: Any,
    target: str,
    html: Path | None,
    json_: Path | None,
    figure: Path | None,
) -> None:
    expected = None if compared is None else {"is": bool(compared), **asdict(compared)}
    content = {"target": target, **report.to_dict(), "expected": expected}
    document = json.dumps(content, allow_nan=False) + "\n"
    if str(json_) == STANDARD_OUTPUT:
        echo(document, end="")
    else:
        echo(str(report))
        if compared:
            echo(f"\n{compared}")
    if html is not None:
        report.save_html(html, target)
    if figure is not None:
        from bptt._src.report.style import as_picture

        picture = as_picture(report.figure(target), figure.suffix.lower()[1:])
        write_whole(figure, picture)
    if json_ is not None and str(json_) != STANDARD_OUTPUT:
        write_whole(json_, document)
