"""Training of a language model that can stop anywhere and continue to the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bptt import Stream
from bptt._src.dropout import numbered
from bptt._src.language_model.agreed import Agreed
from bptt._src.language_model.checkpoint import Progress, checkpoint_of, restore
from bptt._src.language_model.config import Config
from bptt._src.language_model.consent import names_code
from bptt._src.language_model.divergence import (
    NORMS_KEPT,
    first_bad_tensor,
    first_not_finite,
    norms_in_words,
)
from bptt._src.language_model.evaluation import evaluate_shared
from bptt._src.language_model.job import Job, device_here
from bptt._src.language_model.lock import Lock
from bptt._src.language_model.model import check_device
from bptt._src.language_model.monitor import LARGEST, Monitor, Reach, looks_of, reach_of
from bptt._src.language_model.probe import TextProbe
from bptt._src.language_model.run import Run
from bptt._src.language_model.schedule import scheduled
from bptt._src.language_model.score import Score, perplexity
from bptt._src.language_model.setup import make_model, make_optimizer, make_reader
from bptt._src.language_model.step import Taken, TrainingStep
from bptt._src.language_model.tensors import Checkpoint
from bptt._src.language_model.watch import Watch
from bptt._src.ranks import sharing
from bptt._src.shell import quoted
from bptt.data import Batch, PreparedText, Sentences, Streams
from bptt.errors import DivergedError
from bptt.memory import parse as parse_memory

LOG_EVERY = 100  # updates between the lines of metrics.jsonl


@dataclass
class Training:
    """A model in training, with everything that must be saved to continue it."""

    config: Config
    run: Run
    text: PreparedText
    watch: Watch = field(default_factory=Watch)
    lock: Lock | None = None
    """The run's lock; nothing else can train the run while this lives, or until :meth:`close`."""
    job: Job = field(default_factory=Job)
    """The processes that train together. Each has some sequences of every batch, and its own copy
    of all else; rank 0 writes the run."""

    def __post_init__(self) -> None:
        """Make model, optimizer and reader from the configuration."""
        config = self.config
        self.device = check_device(device_here(config.device))
        torch.manual_seed(config.seed)
        self.model = make_model(config, self.text, self.device)
        self.optimizer = make_optimizer(config, list(self.model.parameters()))
        self.step = TrainingStep(self.model, self.optimizer, config.clip, self.job)
        self.credit = config.make_credit()
        self.memory = parse_memory(config.memory) if config.memory else None
        self.reader = self.make_reader()
        self.progress = Progress()
        steps = self.reader.steps if isinstance(self.reader, Streams) else 0
        every = looks_of(config, self.text.train, steps + self.reach_back)
        self.monitor = Monitor(
            self.model, self.text.train, config, every if self.job.is_first else 0
        )
        self.stream = Stream()
        self.sequences = 0  # of which all processes hold the state
        self.agreed = Agreed(self.job, 0 if config.tied else self.text.tokenizer.size)
        self.saved_at, self.updates_saved = time.monotonic(), 0

    def close(self) -> None:
        """Release the run, so that another process can train it."""
        if self.lock is not None:
            self.lock.release()

    # ------------------------------------------------------------------------- the loop

    def fit(self, stop: Callable[[], str | None] = lambda: None) -> str:
        """Train to the end.

        If training diverges, ``on_divergence`` decides whether to go back to the last checkpoint.

        Args:
            stop: called after every update, or during it if several processes train together;
                training ends, on all of them, when it returns a reason.

        Returns:
            Why training ended: ``"epochs"``, ``"patience"``, or the reason that ``stop`` returned.
            Everything is saved; only for the first two has the last state been evaluated.

        Raises:
            DivergedError: a loss, gradient or weight is not a finite number; the last checkpoint
                is kept.
        """
        while True:
            try:
                return self._fit(stop)
            except DivergedError as e:
                may_rewind = self.progress.rewinds < self.config.most_rewinds
                if self.config.on_divergence == "stop" or not may_rewind:
                    self._measure(diverged=e.what)
                    raise
                self._rewind(e.what)

    def _fit(self, stop: Callable[[], str | None]) -> str:
        config, progress = self.config, self.progress
        while self.reader.epoch < config.epochs and not self.out_of_patience():
            for batch in self.reader:
                loss = self.update(batch, stop)
                self.watch.updated(self, loss)
                self._adapt()
                if config.eval_every and progress.updates % config.eval_every == 0:
                    self.evaluate()
                if self.agreed.to_save(self._is_due()):
                    self.save()
                if reason := self.agreed.to_stop(stop):
                    self.save()
                    return reason
                if self.out_of_patience():
                    break
            else:
                self.end_epoch()
            self.save()
        return "patience" if self.out_of_patience() else "epochs"

    def update(self, batch: Batch, stop: Callable[[], str | None] = lambda: None) -> float:
        """Take one step of gradient descent; return the batch's loss in nats per token."""
        started = time.monotonic()
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        before = Stream() if batch.fresh else self.stream
        self.progress.rate = self.rate()
        rank, size = self.job.ranks
        share = self.agreed.share(batch, self.reader, self.reach_back, stop, self._is_due())
        numbers = range(rank, batch.size, size)
        with sharing(self.job.ranks, batch.size), numbered(numbers), self.monitor.listening():
            scale = batch.total / batch.size if self.config.loss_sum else 1.0
            taken = self.step(
                *(inputs, targets, before, self.progress.rate, share, scale), **self._how_computed()
            )
            if not (math.isfinite(taken.loss) and math.isfinite(taken.norm)):
                raise self._diverged_in(taken, inputs, targets, before)
        self.stream, self.sequences, self.agreed.votes = taken.stream, batch.size, taken.votes
        self.progress.gradient_norm = taken.norm
        self.progress.norms = [*self.progress.norms, taken.norm][-NORMS_KEPT:]
        seen = self.monitor.updated(taken.norm, taken.loss, self.progress.updates + 1, self._reach)
        self._count(taken.loss * batch.total, batch.total, time.monotonic() - started, **seen)
        return taken.loss

    def _diverged_in(
        self, taken: Taken, inputs: Tensor, targets: Tensor, before: Stream
    ) -> DivergedError:
        """Make the error of an update: from the process whose loss is not finite, if one's is."""
        found = first_not_finite(
            self.model, inputs, targets, before, taken.own_loss, self._how_computed()
        )
        heard = self.job.exchange((math.isfinite(taken.own_loss), found))
        found = next((text for is_finite, text in heard if not is_finite), heard[0][1])
        return self._diverged(
            f"at update {self.progress.updates + 1}: the loss is {taken.loss:g}, the "
            f"gradient's norm {taken.norm:g}; {found}"
        )

    def _how_computed(self) -> dict[str, Any]:
        """The arguments of a step that determine how its loss and gradient are computed."""
        how = {"credit": self.credit, "memory": self.memory, "reach_back": self.reach_back}
        return {**how, "bf16": self.config.precision == "bf16"}

    @property
    def reach_back(self) -> int:
        """The number of steps before a window that an update runs again."""
        return self.credit.history if self.config.is_carried else 0

    def _reach(self, steps: int) -> Reach:
        """How far back losses are credited, in a window or in a sequence of so many steps."""
        is_stream = isinstance(self.reader, Streams)
        steps = min(self.reader.steps if isinstance(self.reader, Streams) else steps, LARGEST)
        return reach_of(self.credit, steps, self.reach_back, sequences=not is_stream)

    def _adapt(self, *, end_of_epoch: bool = False) -> None:
        """Run the credit's measurement if it is due."""
        every = self.credit.adapt_every
        if end_of_epoch is not (every is None) or (every and self.progress.updates % every):
            return
        before = self.credit.state_dict()
        updates = self.progress.updates
        try:
            probe = TextProbe(self.model, self.text.train, self.config, updates)
            self.credit.adapt(lambda lags: self.job.lead(lambda: probe(lags)))
        except DivergedError as e:
            raise self._diverged(f"after update {updates}: {e}") from None
        if self.credit.state_dict() != before:
            learnt = {f"credit_{k}": v for k, v in self.credit.state_dict().items()}
            self._measure(credit=repr(self.credit), **learnt)
            if self.config.is_carried:  # a new epoch begins, with windows of the new length
                epoch, self.reader = self.reader.epoch, self.make_reader()
                self.reader.epoch = epoch

    def make_reader(self) -> Streams | Sentences:
        """Make the reader of batches, at the first batch."""
        return make_reader(self.config, self.text, self.credit, self.job.ranks)

    def _diverged(self, what: str) -> DivergedError:
        """Make the error: what happened, what led to it, what is kept and what to do."""
        p, config = self.progress, self.config
        back = f" after {p.rewinds} rewind{'s' * (p.rewinds > 1)}" if p.rewinds else ""
        may_clip = not config.clip and max(p.norms, default=0.0) > 1  # else it would change nothing
        remedy = "--clip 1" if may_clip else f"--lr {config.base_rate / 2:g}"
        remedy += " --allow-code" * names_code(config)
        return DivergedError(
            f"training diverged {what}; {norms_in_words(p.norms)}, the learning rate was "
            f"{p.rate:g}",
            f"the last good state, after update {self.updates_saved}, is kept{back}: continue from "
            f"it with bptt train --resume {quoted(self.run.path)} {remedy}",
        )

    def _check_weights(self) -> None:
        """Stop if the last update made weights infinite."""
        bad = first_bad_tensor(dict(self.model.named_parameters()))
        if bad is not None:
            raise self._diverged(f"by update {self.progress.updates}: {bad} is not finite")

    def _rewind(self, reason: str) -> None:
        """Go back to the last checkpoint with half the learning rate, and report it."""
        rewinds = self.progress.rewinds + 1
        self.resume(self.job.lead(self.run.load_checkpoint))
        self.progress.rewinds = rewinds
        self._measure(rewind=rewinds, diverged=reason)
        self.save()  # so that a resumed run starts from here too
        self.watch.rewound(self, reason)

    def _count(self, nats: float, tokens: int, seconds: float, **seen: Any) -> None:
        p = self.progress
        p.updates += 1
        p.tokens += tokens
        p.seconds += seconds
        p.nats, p.counted = p.nats + nats, p.counted + tokens
        p.epoch_nats, p.epoch_tokens = p.epoch_nats + nats, p.epoch_tokens + tokens
        if p.updates == 1 or p.updates % LOG_EVERY == 0:
            self._measure(loss=p.nats / p.counted, **seen)
            p.nats, p.counted = 0.0, 0
        elif seen:
            self._measure(**seen)

    def rate(self) -> float:
        """The learning rate of the current update."""
        config, p = self.config, self.progress
        rate = config.base_rate * 0.5 ** (p.halvings + p.rewinds)
        if p.updates < config.warmup:
            rate *= (p.updates + 1) / config.warmup
        # The reader is already past this update's batch.
        before = max(0, self.reader.position - 1) / len(self.reader)
        done = (self.reader.epoch + before) / max(1, config.epochs)
        return rate * scheduled(config.schedule, self.reader.epoch + 1, done)

    def out_of_patience(self) -> bool:
        """Whether the last evaluations brought no improvement."""
        return self.config.patience is not None and self.progress.worse >= self.config.patience

    # ------------------------------------------------------------- evaluation and saving

    def end_epoch(self) -> None:
        """Evaluate, unless that was just done, and start the next epoch's counts."""
        p = self.progress
        if p.epoch_tokens:
            loss = p.epoch_nats / p.epoch_tokens
            self._measure(
                epoch=self.reader.epoch,
                epoch_loss=loss,
                epoch_perplexity=perplexity(loss),
                **self.monitor.epoch_ended(p.updates, self._reach),
            )
        p.epoch_nats, p.epoch_tokens = 0.0, 0
        self._adapt(end_of_epoch=True)
        is_last = self.reader.epoch >= self.config.epochs
        if (is_last or not self.config.eval_every) and p.evaluated_at != p.updates:
            self.evaluate()

    def evaluate(self) -> Score:
        """Measure the loss on the validation text; keep the model; halve the rate if due."""
        p = self.progress
        self._check_weights()
        score = self._score()
        if not math.isfinite(score.loss):
            raise self._diverged(f"by update {p.updates}: the validation loss is {score.loss:g}")
        is_best = self._keep(score)
        if is_best:
            p.best_valid, p.worse = score.loss, 0
        else:
            p.worse += 1
        rose = p.last_valid is not None and score.loss > p.last_valid
        if rose and self.config.schedule == "halve":
            p.halvings += 1
        p.last_valid, p.evaluated_at = score.loss, p.updates
        self._measure(
            valid_loss=score.loss,
            valid_perplexity=score.perplexity,
            valid_bits_per_character=score.bits_per_character,
        )
        self.watch.evaluated(self, score, is_best)
        return score

    def evaluate_unsaved(self) -> None:
        """Evaluate a state for which no evaluation was due, after the checkpoint was written.

        The model is kept if it is to be; nothing else changes, so that training continues from the
        checkpoint as if this had not happened.
        """
        if self.progress.evaluated_at != self.progress.updates:
            score = self._score()
            self.watch.evaluated(self, score, self._keep(score))

    def _score(self) -> Score:
        return evaluate_shared(
            self.model, self.text.valid, self.job, batch_size=self.config.batch_size
        )

    def _keep(self, score: Score) -> bool:
        best = self.progress.best_valid
        is_finite = math.isfinite(score.loss)
        is_best = is_finite and (best is None or score.loss < best)
        if is_best or (is_finite and self.config.keep == "last"):
            about = {
                "text": self.text.fingerprint,
                "updates": self.progress.updates,
                "valid": score.to_dict(),
            }
            self.job.lead(lambda: self.run.save_model(self.model, about))
        return is_best

    def _measure(self, **values: Any) -> None:
        p = self.progress
        if "loss" in values:
            values["perplexity"] = perplexity(values["loss"])
        line = {
            "update": p.updates,
            "epoch": self.reader.epoch,
            "tokens": p.tokens,
            "seconds": round(p.seconds, 3),
            "rate": p.rate,
            "gradient_norm": p.gradient_norm,
            **values,
        }
        if self.job.is_first:
            self.run.append_metrics(p.measurements, line)
        p.measurements += 1
        self.watch.measured(line)

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.config.save_every

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            RanksError: the processes do not have the same weights.
            DivergedError: something in it is not finite; the previous checkpoint is kept.
            OSError: it cannot be written; the previous checkpoint is kept.
        """
        tensors, about = self.checkpoint()
        bad = first_bad_tensor(tensors)
        if bad is not None:
            raise self._diverged(f"by update {self.progress.updates}: {bad} is not finite")
        self.agreed.check_same(tensors, f"after update {self.progress.updates}")
        self.job.lead(lambda: self.run.save_checkpoint(tensors, about))
        self.saved_at, self.updates_saved = time.monotonic(), self.progress.updates

    def checkpoint(self) -> Checkpoint:
        """Collect everything needed to continue from here; :meth:`resume` takes it."""
        return checkpoint_of(self)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go back to the point at which a checkpoint was written.

        Args:
            checkpoint: a value of :meth:`checkpoint`, from this run.

        Raises:
            CheckpointError: the checkpoint is damaged or belongs to another run.
        """
        restore(self, checkpoint)
        self.updates_saved = self.progress.updates
        # Whatever was measured after the checkpoint will be measured again.
        kept = self.progress.measurements
        self.progress.measurements = self.job.lead(lambda: self.run.keep_metrics(kept))
