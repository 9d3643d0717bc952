"""A run's directory: what is in it, how it is written, how it is read again.

    config.json             the options
    tokenizer.json          the tokenizer, in the format of the tokenizers library
    text.json               what the text was: its fingerprint, where it came from
    model.safetensors       the weights that did best on the validation text
    checkpoint.safetensors  all that training needs to go on from where it was
    metrics.jsonl           a line for each measurement
    .lock                   held by the process that trains it

Every file is written beside its place and renamed, and so is a new run as a whole; a checkpoint is
one file. So there is a usable run at any moment. There is no pickle in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bptt.data import Tokenizer
from bptt.errors import CheckpointError, ConfigError
from bptt.files import append_line, share, write_whole
from bptt.language_model.config import Config, read_options
from bptt.language_model.lock import Lock
from bptt.language_model.model import LanguageModel, check_device

FORMAT = "bptt-1"
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and all else, as JSON can hold it."""

_LATER = ("model.safetensors", "metrics.jsonl", "tensorboard")  # what training adds
_AT_ONCE = ("tokenizer.json", "text.json", "checkpoint.safetensors", ".lock", "config.json")


@dataclass(frozen=True)
class Run:
    """The files of a run, by what they mean."""

    path: Path

    def check(self) -> None:
        """Make sure that there is a run here.

        Raises:
            CheckpointError: there is not.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"there is no run at {self.path}: give the directory that `bptt train` made"
            )
        missing = [n for n in ("config.json", "tokenizer.json") if not (self.path / n).is_file()]
        if missing:
            raise CheckpointError(f"{self.path} is not a run: it has no {' and no '.join(missing)}")

    def check_free(self, *, overwrite: bool) -> None:
        """Make sure that a run can be made here.

        Raises:
            ConfigError: there is one already, and it shall stay, or a file is in the way.
        """
        if self.exists and not overwrite:
            raise ConfigError(
                f"there is a run in {self.path} already: go on with it by --resume {self.path}, "
                "replace it by --overwrite, or choose another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path} is a file; choose a directory")

    def create(
        self,
        config: Config,
        tokenizer: Tokenizer,
        text: dict[str, Any],
        checkpoint: Checkpoint,
        *,
        overwrite: bool = False,
    ) -> Lock:
        """Make the run beside its place and move it there, in place of an old one if told so.

        Other files that are there stay. If it fails, everything is as it was.

        Returns:
            The lock, held.

        Raises:
            ConfigError: there is a run already, or another process trains it.
            OSError: it cannot be written.
        """
        place = self.path.resolve()
        old = Lock(place, self.path) if self.exists else None
        # In a directory that is there already, because only it may be ours to write in.
        within = place if place.is_dir() and not old else place.parent
        within.mkdir(parents=True, exist_ok=True)
        new = Run(Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=within)))
        try:
            share(new.path)
            lock = Lock(new.path, self.path)
            tokenizer.save(new.path / "tokenizer.json")
            write_whole(new.path / "text.json", json.dumps(text, indent=2) + "\n")
            new.save_checkpoint(*checkpoint)
            config.save(new.path / "config.json")
            self.check_free(overwrite=overwrite)
            _move_in(new.path, place, replace=old is not None)
        except BaseException:
            shutil.rmtree(new.path, ignore_errors=True)
            raise
        finally:
            if old is not None:
                old.release()
        return lock

    def remove_leftovers(self) -> None:
        """Remove what a kill left of files that were being written; only under the lock."""
        for name in (*_AT_ONCE, *_LATER):
            for path in self.path.glob(f".{name}.*.new"):
                path.unlink()

    @property
    def exists(self) -> bool:
        """Whether a run is here already."""
        return (self.path / "config.json").exists()

    def config(self) -> Config:
        """Read config.json."""
        self.check()
        try:
            return Config(**read_options(self.path / "config.json"))
        except ConfigError as e:
            raise CheckpointError(f"the run {self.path} has a damaged config.json: {e}") from None

    def tokenizer(self) -> Tokenizer:
        """Read tokenizer.json."""
        self.check()
        return Tokenizer.load(self.path / "tokenizer.json")

    def text(self) -> dict[str, Any]:
        """Read text.json."""
        path = self.path / "text.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), str):
                raise ValueError("no fingerprint in it")
            return found
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{path} is missing or damaged: {e}") from None

    # ------------------------------------------------------------------------- weights

    def save_model(self, model: LanguageModel, about: dict[str, Any]) -> None:
        """Write model.safetensors: the weights, and where they come from."""
        _write(self.path / "model.safetensors", weights_of(model), about)

    def load_model(self, device: str = "cpu") -> LanguageModel:
        """Read the best model; before the first evaluation, the last checkpoint's.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit config.json.
        """
        config, tokenizer = self.config(), self.tokenizer()
        model = LanguageModel(tokenizer, config)
        path = self.path / "model.safetensors"
        if path.exists():
            weights, _ = _read(path)
        else:
            path = self.path / "checkpoint.safetensors"
            weights, _ = _read(path)
            weights = with_prefix(weights, "model.")
        load_weights(model, weights, path)
        return model.to(check_device(device)).eval()

    # ---------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write checkpoint.safetensors: tensors by name, and all else as JSON in its header."""
        _write(self.path / "checkpoint.safetensors", tensors, about)

    def load_checkpoint(self) -> Checkpoint:
        """Read what :meth:`save_checkpoint` wrote.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        self.check()
        return _read(self.path / "checkpoint.safetensors")

    # -------------------------------------------------------------------------- metrics

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", json.dumps(line))

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; what a kill cut short, or what is damaged, ends it."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                measured = json.loads(line)
            except ValueError:
                break
            if not isinstance(measured, dict):
                break
            found.append(measured)
        return found

    def keep_metrics(self, count: int) -> int:
        """Take back all lines but the first ones, and say how many these are."""
        kept = [json.dumps(m) + "\n" for m in self.metrics()[:count]]
        write_whole(self.path / "metrics.jsonl", "".join(kept))
        return len(kept)


def _move_in(new: Path, place: Path, *, replace: bool) -> None:
    """Move a new run to its place; config.json, which makes it one, comes last."""
    if replace:
        _replace(new, place)
    elif not place.exists():
        new.rename(place)
    else:
        for name in _LATER:
            _remove(place / name)
        for name in _AT_ONCE:
            if (new / name).exists():
                (new / name).replace(place / name)
        new.rmdir()


def _replace(new: Path, place: Path) -> None:
    """Put a new run in the place of an old one; what is not of the run goes over to it."""
    aside = new.with_name(new.name.replace(".new-", ".old-"))
    place.rename(aside)
    try:
        new.rename(place)
    except BaseException:
        aside.rename(place)
        raise
    for path in aside.iterdir():
        if path.name not in (*_AT_ONCE, *_LATER) and not path.match(".*.new"):
            path.rename(place / path.name)
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """The model's tensors by name; a tied readout's weight once only."""
    weights = dict(model.state_dict())
    if model.config.tied:
        del weights["readout.weight"]
    return weights


def load_weights(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model.

    Raises:
        CheckpointError: they are not this model's, or not all finite, which training never saves.
    """
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path} is damaged: {name} holds numbers that are not finite; train again, or "
                "take a copy of the run from before"
            )
    weights = dict(weights)
    if model.config.tied and "embedding.weight" in weights:
        weights["readout.weight"] = weights["embedding.weight"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        reason = " ".join(str(e).split())
        raise CheckpointError(
            f"{path} does not fit the run's config.json and tokenizer.json: {reason}"
        ) from None


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Pick the tensors whose names begin with the prefix, and take it off."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # One entry: the library writes several in an order that differs from process to process.
    header = {"about": json.dumps({"format": FORMAT, **about})}
    write_whole(path, safetensors.torch.save(tensors, header))


def _read(path: Path) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the run was stopped before it was first saved")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        about = json.loads(header.get("about", "{}"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not of the format {FORMAT}: it is no file of a run")
        return tensors, about
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as e:
        raise CheckpointError(f"{path} cannot be read or is damaged: {e}") from None
