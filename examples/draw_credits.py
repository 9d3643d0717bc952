"""Draw the weight matrix W[t, s] of each credit.

python examples/draw_credits.py [FILE.svg]
"""

import sys

import torch

import bptt
from bptt.credit import parse
from bptt.report import draw_plans

SPELLINGS = [
    "full",
    "truncated:8",
    "truncated:every=4,reach=8",
    "truncated:every=1,reach=8",
    "randomized:8",
    "randomized:8,tail=constant",
]

generator = torch.Generator().manual_seed(2)
plans: dict[str, bptt.Plan] = {s: parse(s).plan(24, generator=generator) for s in SPELLINGS}
figure = draw_plans(plans)
file = sys.argv[1] if len(sys.argv) > 1 else "credits.svg"
figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
print(f"{file}: " + ", ".join(f"{s} (reach {p.reach})" for s, p in plans.items()))
