"""``bptt export``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from bptt._src.atomic import write_whole
from bptt._src.cli.places import AllowCode, check_places
from bptt._src.cli.terminal import echo
from bptt._src.language_model.elsewhere import check_onnx, state_names
from bptt.errors import ConfigError, require
from bptt.language_model import LanguageModel

STEPS = 64
"""Tokens of the check."""


def export(
    run: Annotated[Path, typer.Argument(help="the run's directory", show_default=False)],
    file: Annotated[
        Path, typer.Argument(help="the file to write, as model.onnx", show_default=False)
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write a run's best model as a file of ONNX, and check it.

    Where onnxruntime is installed, it runs the model token by token before
    the file is written, and the logits are compared with the model's.
    """
    check_places(file=file)
    if file.exists() and not overwrite:
        raise ConfigError(
            f"FILE {file} exists already: replace it by --overwrite, or choose another name"
        )
    for package in ("onnx", "onnxscript"):
        require(package, "onnx")
    model = LanguageModel.load(run, allow_code=allow_code)
    content = model.to_onnx()
    checked = "not checked: onnxruntime is not installed: pip install 'bptt[onnx]'"
    if find_spec("onnxruntime") is not None:
        off = check_onnx(model, content, steps=STEPS)
        checked = (
            f"in onnxruntime, {STEPS} tokens one by one and at once: within {off:.0e} of the "
            "model's logits and states"
        )
    write_whole(file, content)
    layers, hidden, V = model.config.layers, model.config.hidden, model.tokenizer.size
    names = state_names(model)
    before, after = (", ".join(f"{n}_{i}" for n in names) for i in "0n")
    echo(
        f"file     {file}, {len(content) / 1e6:,.2f} MB\n"
        f"inputs   tokens, int64 [T, B]; {before}, float32 [{layers}, B, {hidden}], at first 0\n"
        f"outputs  logits, float32 [T, B, {V}]; {after}\n"
        'text     the tokenizer is in the metadata, "tokenizer.json", for the tokenizers library;\n'
        '         "language_model.json" says which token comes first\n'
        f"checked  {checked}"
    )


command = export
