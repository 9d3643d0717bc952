"""How fast training is here: ours, torch.nn, JAX and the processor's own limits, in one run."""

from bptt.bench.result import Bench, Limits, Row, SeedEpoch, Start
from bptt.bench.run import SECTIONS, Watch, bench
from bptt.bench.shapes import Shape
from bptt.bench.table import print_bench
from bptt.bench.timing import Effort

__all__ = [
    "SECTIONS",
    "Bench",
    "Effort",
    "Limits",
    "Row",
    "SeedEpoch",
    "Shape",
    "Start",
    "Watch",
    "bench",
    "print_bench",
]
