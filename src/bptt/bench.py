"""How fast training is here: ours, torch.nn, JAX and the processor's own limits, in one run."""

from bptt._src.bench.jobs import SECTIONS
from bptt._src.bench.result import Bench, Limits, Peaks, Row, SeedEpoch, Start
from bptt._src.bench.run import BenchWatch, bench
from bptt._src.bench.shapes import Shape
from bptt._src.bench.table import print_bench
from bptt._src.bench.timing import Effort

__all__ = [
    "SECTIONS",
    "Bench",
    "BenchWatch",
    "Effort",
    "Limits",
    "Peaks",
    "Row",
    "SeedEpoch",
    "Shape",
    "Start",
    "bench",
    "print_bench",
]
