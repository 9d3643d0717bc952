"""A run's directory: its files, and how they are written and read.

    config.json             the options
    tokenizer.json          the tokenizer, in the format of the tokenizers library
    text.json               the text's fingerprint and origin
    model.safetensors       the weights that did best on the validation text
    checkpoint.safetensors  all that training needs to continue
    metrics.jsonl           one line per measurement
    .lock                   held by the process that trains the run

Every file is written to a temporary name and renamed, and so is a new run as a whole; a checkpoint
is one file. So there is a usable run at any moment. No file is a pickle, and each has a digest
(that of tokenizer.json is in text.json): a file that was damaged or edited is refused.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bptt._src.atomic import append_line, read_whole, write_whole
from bptt._src.data.rules import check_rules
from bptt._src.documents import line_of, lines_in, read_sealed, sealed
from bptt._src.language_model.config import Config
from bptt._src.language_model.consent import allow_cell, refuse_cell
from bptt._src.language_model.expected import check_checkpoint, check_weights, weights_kinds
from bptt._src.language_model.lock import Lock
from bptt._src.language_model.making import Creation, finish_interrupted, is_run
from bptt._src.language_model.model import LanguageModel, check_device
from bptt._src.language_model.options_file import as_options
from bptt._src.language_model.tensors import Checkpoint, Kind, read_tensors, write_tensors
from bptt.data import Tokenizer
from bptt.errors import BpttWarning, CheckpointError

_MOST = 1 << 30  # bytes of a tokenizer's file, or of metrics.jsonl


@dataclass(frozen=True)
class Run:
    """The files of a run, by meaning."""

    path: Path

    def check(self) -> None:
        """Make sure that there is a run here; complete one that a killed `--overwrite` began.

        Raises:
            CheckpointError: there is none.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"there is no run at {self.path}: give the directory that `bptt train` made"
            )
        finish_interrupted(self.path)
        names = ("config.json", "tokenizer.json", "text.json")
        missing = [n for n in names if not (self.path / n).is_file()]
        if missing:
            raise CheckpointError(f"{self.path} is not a run: it has no {' and no '.join(missing)}")

    def create(
        self,
        config: Config,
        tokenizer: Tokenizer,
        text: dict[str, Any],
        checkpoint: Checkpoint,
        *,
        overwrite: bool = False,
        lock: Lock | None = None,
    ) -> Lock:
        """Make the run as a whole, replacing an existing one if asked.

        Other files in the directory stay. If it fails, everything is as it was.

        Args:
            config: the options.
            tokenizer: the vocabulary.
            text: the description of the text, with its ``fingerprint``.
            checkpoint: the state before the first update.
            overwrite: whether to replace an existing run.
            lock: the directory's lock, if it is held already.

        Returns:
            The lock, held.

        Raises:
            ConfigError: there is a run already, or another process trains it.
            OSError: it cannot be written.
        """
        with Creation(self.path, lock, overwrite=overwrite) as creation:
            new = Run(creation.new)
            vocabulary = tokenizer.to_json().encode()
            text = {**text, "tokenizer_sha256": hashlib.sha256(vocabulary).hexdigest()}
            new._write("tokenizer.json", vocabulary)
            new._write("text.json", sealed(text))
            new.save_checkpoint(*checkpoint)
            new.save_config(config)
            return creation.finish()

    @property
    def exists(self) -> bool:
        """Whether there is a run here already."""
        return is_run(self.path)

    def config(self) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: it is missing, damaged, or was edited.
        """
        self.check()
        path = self.path / "config.json"
        try:
            return Config(**as_options(read_sealed(path), path))
        except (OSError, ValueError) as e:  # and ConfigError, which is a ValueError
            raise CheckpointError(
                f"{path} is damaged or was edited: {_reason(e)}; restore it. To change a run's "
                f"options, use `bptt train --resume` with new ones; `bptt train --config` "
                "makes a new run from an edited copy"
            ) from None

    def save_config(self, config: Config) -> None:
        """Write config.json."""
        self._write("config.json", sealed(config.to_dict()))

    def tokenizer(self) -> Tokenizer:
        """Read tokenizer.json.

        Raises:
            CheckpointError: it is damaged, or is not one that `bptt train` makes.
        """
        path = self.path / "tokenizer.json"
        digest = self.text()["tokenizer_sha256"]
        try:
            content = read_whole(path, _MOST)
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError("its content does not match the sha256 in text.json")
            text = content.decode()
            check_rules(text)
        except (OSError, ValueError) as e:
            raise CheckpointError(
                f"{path} is damaged or does not belong to a run: {_reason(e)}; restore it, or "
                "train again"
            ) from None
        return Tokenizer.from_json(text, name=str(path))

    def text(self) -> dict[str, Any]:
        """Read text.json.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        self.check()
        path = self.path / "text.json"
        try:
            found = read_sealed(path)
            for name in ("fingerprint", "tokenizer_sha256"):
                if not re.fullmatch("[0-9a-f]{64}", str(found.get(name))):
                    raise ValueError(f"no {name} in it")
            if type(found.get("unigram_perplexity")) is not float:
                raise ValueError("no unigram_perplexity in it")
            return found
        except (OSError, ValueError) as e:
            raise CheckpointError(
                f"{path} is missing or damaged: {_reason(e)}; restore it, or train again"
            ) from None

    # ------------------------------------------------------------------------- weights

    def save_model(self, model: LanguageModel, about: dict[str, Any]) -> None:
        """Write model.safetensors: the weights and their origin."""
        write_tensors(self.path / "model.safetensors", weights_of(model), about)

    def load_model(self, device: str = "cpu", *, allow_code: bool = False) -> LanguageModel:
        """Load the best model, or that of the last checkpoint before the first evaluation.

        Args:
            device: the device to load it to.
            allow_code: whether the run may name a cell ``module.CELL`` whose module is not imported
                yet, and has to be, which runs its code.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit config.json.
            ConfigError: there is no such device, or too little memory for the model; or the cell
                cannot be imported, or is not allowed to.
        """
        config, tokenizer = self.config(), self.tokenizer()
        if allow_code:
            allow_cell(config.cell)
        refuse_cell(config.cell, self.path / "config.json")
        path = self.path / "model.safetensors"
        if path.exists():
            expected = weights_kinds(config, tokenizer)

            def check(found: dict[str, Kind]) -> None:
                check_weights(found, expected)

            weights, about = read_tensors(path, check)
            self._check_text(path, about)
        else:
            weights = with_prefix(self.load_checkpoint()[0], "model.")
            path = self.path / "checkpoint.safetensors"
        model = LanguageModel(tokenizer, config)
        load_weights(model, weights, path)
        return model.to(check_device(device)).eval()

    # ---------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write checkpoint.safetensors: tensors by name, and all else as JSON in its header."""
        write_tensors(self.path / "checkpoint.safetensors", tensors, about)

    def load_checkpoint(self) -> Checkpoint:
        """Read what :meth:`save_checkpoint` wrote.

        Raises:
            CheckpointError: it is missing, damaged, or does not fit config.json.
            ConfigError: it names a cell whose module is not imported.
        """
        config = self.config()
        refuse_cell(config.cell, self.path / "config.json")
        expected = weights_kinds(config, self.tokenizer())
        path = self.path / "checkpoint.safetensors"

        def check(found: dict[str, Kind]) -> None:
            check_checkpoint(found, config, expected)

        tensors, about = read_tensors(path, check)
        self._check_text(path, about)
        return tensors, about

    def _check_text(self, path: Path, about: dict[str, Any]) -> None:
        if about.get("text") != self.text()["fingerprint"]:
            raise CheckpointError(
                f"{path} belongs to another run, whose text is not that of text.json: restore "
                "the file"
            )

    # -------------------------------------------------------------------------- metrics

    def append_metrics(self, number: int, line: dict[str, Any]) -> None:
        """Append line ``number`` (counted from 0) to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", line_of(number, line))

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl without its damaged lines; a warning counts them."""
        found = self._lines()
        _warn_of_lost(self.path / "metrics.jsonl", found, max(found, default=-1) + 1)
        return [found[n] for n in sorted(found)]

    def keep_metrics(self, count: int) -> int:
        """Remove all but the first lines; return how many of those there are."""
        path = self.path / "metrics.jsonl"
        kept = {n: line for n, line in self._lines().items() if n < count}
        _warn_of_lost(path, kept, count)
        lines = [line_of(i, kept[n]) + "\n" for i, n in enumerate(sorted(kept))]
        self._write("metrics.jsonl", "".join(lines))
        return len(lines)

    def _lines(self) -> dict[int, dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return {}
        try:
            return lines_in(read_whole(path, _MOST))
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{path} cannot be read: {_reason(e)}") from None

    def _write(self, name: str, content: str | bytes) -> None:
        write_whole(self.path / name, content, follow_links=False)


def _reason(e: Exception) -> str:
    return (e.strerror if isinstance(e, OSError) else None) or str(e)


def _warn_of_lost(path: Path, found: dict[int, Any], count: int) -> None:
    lost = count - len(found)
    if lost:
        warnings.warn(
            f"{path} is damaged: {lost} of its {count} measurements are lost",
            BpttWarning,
            stacklevel=4,
        )


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """The model's tensors by name; a tied readout's weight appears once."""
    weights = dict(model.state_dict())
    if model.config.tied:
        del weights["readout.weight"]
    return weights


def load_weights(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a model.

    Args:
        model: the model.
        weights: the tensors by name, of the right shapes.
        path: the file they came from.

    Raises:
        CheckpointError: they are not all finite, which training never saves.
    """
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path} is damaged: {name} holds numbers that are not finite; train again, or "
                "restore an earlier copy of the run"
            )
    weights = dict(weights)
    if model.config.tied:
        weights["readout.weight"] = weights["embedding.weight"]
    model.load_state_dict(weights)


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with the prefix, and remove it from their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
