"""What was measured, and the figures that follow from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import Any

OURS, TORCH, JAX, TEXTBOOK = "bptt", "torch.nn", "JAX", "textbook"
EXACT, WINDOWS = "exact", "windows"
"""Who is measured, and the two ways of assigning credit, both ours."""
CELL = "torch.nn cell"
"""torch.nn's LSTMCell, GRUCell or RNNCell, called once a step."""
IN_BF16 = {name: f"{name} bf16" for name in (OURS, TORCH, CELL)}
"""The same under ``torch.autocast("cpu", torch.bfloat16)``."""
CONVERTED = {name: f"{name} .bfloat16()" for name in (TORCH, CELL)}
"""The same with weights and inputs of bfloat16, which no call has to convert."""
ALL_IN_BF16 = frozenset((*IN_BF16.values(), *CONVERTED.values()))
ALONE = "bptt on one thread"
"""Ours, beside itself on several."""
IN_PROCESSES = ("1 thread", "2 threads", "2 processes", "2 processes, no sum")
"""How ours and torch.nn's language models are trained in the section ranks."""
UPDATE, HEARD, TOLD, LOOK = "update", "with norms", "recording", "measuring"
"""An update of a language model, one that notes norms, recording it, and measuring the text."""

UNITS = {
    "milliseconds": "wall-clock time of one training step; of one round the median of its turn",
    "flop": "floating-point operations of one training step, those of its matrix products",
    "gflop_per_second": "10^9 floating-point operations a second",
    "share_of_peak": "of limits.fma_peak, in bfloat16 of its own; null where that is not measured",
    "ratio": "median over the rounds of this contender's time by the base's in the same round",
    "shape": "T/B/I/H: steps, batch, inputs, hidden; of models V/H/B/T, V the vocabulary",
    "loss": "nats a token after the untimed first updates",
    "page_faults": "of a training step: pages that are touched for the first time",
    "seconds": "wall-clock time",
}


@dataclass(frozen=True)
class Peaks:
    """Fused multiply-adds on registers alone, GFLOP/s; None where not measured."""

    float32: float | None = None
    bfloat16: float | None = None

    def of(self, contender: str) -> float | None:
        """Return that of a contender's products."""
        return self.bfloat16 if contender in ALL_IN_BF16 else self.float32


@dataclass(frozen=True)
class Row:
    """Contenders side by side in one job."""

    section: str
    """One of :data:`bptt.bench.SECTIONS`."""
    name: str
    """The cell, the number of layers where it is not one, and the threads and processors."""
    shape: str
    flop: int | None
    """Of a step; None where the contenders do not do the same."""
    seconds: dict[str, list[float]]
    """Of a step of each contender, in each round."""
    notes: list[str] = field(default_factory=list)
    tokens: int | None = None
    """Of a step of a language model."""
    losses: dict[str, float] | None = None
    """Of a language model, after its first updates."""
    base: str = OURS
    """What the ratios are to."""
    faults: dict[str, int] | None = None
    """The page faults of a step of each contender, where they are counted."""

    @property
    def is_bf16(self) -> bool:
        """Whether the contenders multiply in bfloat16, but for those that are said not to."""
        return self.base == IN_BF16[OURS]

    def name_of(self, contender: str) -> str:
        """Return the name under which a contender is in this row: in bfloat16 another one."""
        return IN_BF16.get(contender, contender) if self.is_bf16 else contender

    def milliseconds(self, contender: str) -> float | None:
        """Return the median over the rounds; None for a contender that is not in it, as below."""
        times = self.seconds.get(contender)
        return 1e3 * statistics.median(times) if times else None

    def gflops(self, contender: str) -> float | None:
        """Return the operations a second, in units of 10^9."""
        ms = self.milliseconds(contender)
        return None if ms is None or self.flop is None else self.flop / ms / 1e6

    def share(self, contender: str, peaks: Peaks) -> float | None:
        """Return the share of the processor's peak."""
        gflops, peak = self.gflops(contender), peaks.of(contender)
        return None if gflops is None or peak is None else gflops / peak

    def ratio(self, contender: str) -> float | None:
        """Return the ratio of this time to that of :attr:`base`, round by round."""
        if self.base not in self.seconds or contender not in self.seconds:
            return None
        pairs = zip(self.seconds[self.base], self.seconds[contender], strict=True)
        return statistics.median(b / a for a, b in pairs)

    def to_dict(self, peaks: Peaks) -> dict[str, Any]:
        """Return all of it as JSON's values."""
        about: dict[str, Any] = {"section": self.section, "name": self.name, "shape": self.shape}
        about |= {"flop": self.flop, "base": self.base}
        if self.tokens is not None:
            about["tokens"] = self.tokens
        losses, faults = self.losses or {}, self.faults or {}
        return about | {
            "contenders": {
                name: {
                    "milliseconds": self.milliseconds(name),
                    "gflop_per_second": self.gflops(name),
                    "share_of_peak": self.share(name, peaks),
                    "ratio": self.ratio(name),
                    **({"loss": losses[name]} if name in losses else {}),
                    **({"page_faults": faults[name]} if name in faults else {}),
                    "milliseconds_of_rounds": [1e3 * s for s in times],
                }
                for name, times in self.seconds.items()
            },
            "notes": self.notes,
        }


def split_by_dtype(row: Row) -> list[Row]:
    """Make of a row one of float32 and one of bfloat16, as far as there are; one has the notes."""
    in_bf16 = {name: times for name, times in row.seconds.items() if name in ALL_IN_BF16}
    in_fp32 = {name: times for name, times in row.seconds.items() if name not in ALL_IN_BF16}
    found = [replace(row, seconds=in_fp32)] if in_fp32 else []
    if in_bf16:
        bf16 = replace(row, name=f"{row.name} bf16", seconds=in_bf16, base=IN_BF16[OURS])
        found.append(replace(bf16, notes=[]) if found else bf16)
    return found


@dataclass(frozen=True)
class Limits:
    """What the processor can do."""

    peak: float | None
    """Fused multiply-adds on registers alone, GFLOP/s in float32; None where not measured."""
    no_peak: str | None
    """Why not."""
    products: dict[str, float]
    """GFLOP/s of large matrix products, by library and size."""
    peak_bf16: float | None = None
    """The peak of bfloat16; None where the kernels have no products of it."""

    @property
    def best(self) -> str:
        """Which product is the fastest."""
        return max(self.products, key=self.products.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON's values."""
        peak = {"gflop_per_second": self.peak, "not_measured": self.no_peak}
        peak |= {"gflop_per_second_bf16": self.peak_bf16}
        best = {"what": self.best, "gflop_per_second": self.products[self.best]}
        return {"fma_peak": peak, "matrix_product": best, "matrix_products": self.products}


@dataclass(frozen=True)
class SeedEpoch:
    """An epoch of the seed's job, one sentence an update."""

    sentences: int
    """Of a whole epoch."""
    measured: dict[str, tuple[float, int]]
    """By contender: seconds, and how many sentences they were for."""

    def seconds(self, contender: str) -> float:
        """Return the time of a whole epoch, extrapolated where not all of it was run."""
        seconds, sentences = self.measured[contender]
        return seconds / sentences * self.sentences

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON's values."""
        return {
            "sentences": self.sentences,
            "contenders": {
                name: {
                    "seconds": self.seconds(name),
                    "is_extrapolated": sentences < self.sentences,
                    "measured_seconds": seconds,
                    "measured_sentences": sentences,
                }
                for name, (seconds, sentences) in self.measured.items()
            },
        }


@dataclass(frozen=True)
class Start:
    """What beginning costs in a process of its own, in milliseconds."""

    load: float | None
    """To load the native library; None where it is not in use."""
    first_call: float
    """The first training step of a small LSTM."""
    later_call: float
    """The same once more, the median of some."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON's values."""
        return {
            "load_milliseconds": self.load,
            "first_call_milliseconds": self.first_call,
            "later_call_milliseconds": self.later_call,
        }


@dataclass
class Bench:
    """Everything that one run of ``bptt bench`` measured."""

    conditions: dict[str, Any]
    limits: Limits | None = None
    rows: list[Row] = field(default_factory=list)
    seed_epoch: SeedEpoch | None = None
    start: Start | None = None
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    interrupted: bool = False

    @property
    def has_steps(self) -> bool:
        """Whether a training step of a layer or a language model was measured."""
        return any(row.section in ("kernels", "model") for row in self.rows)

    @property
    def peaks(self) -> Peaks:
        """The processor's."""
        found = self.limits
        return Peaks() if found is None else Peaks(found.peak, found.peak_bf16)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON's values, with the units."""
        return {
            "what": "bptt bench",
            "units": UNITS,
            "conditions": self.conditions,
            "limits": None if self.limits is None else self.limits.to_dict(),
            "rows": [row.to_dict(self.peaks) for row in self.rows],
            "seed_epoch": None if self.seed_epoch is None else self.seed_epoch.to_dict(),
            "start": None if self.start is None else self.start.to_dict(),
            "notes": self.notes,
            "interrupted": self.interrupted,
        }
