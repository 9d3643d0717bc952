"""What the trial's stages say: torch, GPUs, threads, kernels and their speed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bptt._src.doctor.diagnosis import Diagnosis
from bptt._src.doctor.trial import CELLS, TOLERANCE

VARIABLE = "BPTT_KERNELS"
OF_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Tried:
    """What the trial has printed, and why it ended before its end, if it did."""

    stages: dict[str, dict[str, Any]]
    why: str | None = None


def look_at_trial(tried: Tried) -> list[Diagnosis]:
    """Make findings of the stages that were reached, and one of where it ended."""
    stages = tried.stages
    if "torch" not in stages:
        return [
            Diagnosis(
                "torch",
                "broken",
                f"cannot be loaded: {tried.why}",
                "Nothing of bptt runs without it.",
                "install torch again, by the command that its site gives for this machine",
            )
        ]
    found = [_torch(stages["torch"]), _gpu(stages["torch"])]
    error = stages.get("bptt", {}).get("error", tried.why if {*stages} == {"torch"} else None)
    if error is not None:
        mend = "install bptt again, or mend that file"
        says = f"bptt's own modules cannot be imported: {error}"
        return [*found, Diagnosis("core", "broken", says, remedy=mend)]
    if "threads" in stages:
        found.append(_threads(stages["threads"]))
    found.append(_kernels(tried))
    if "timed" in stages:
        found.append(_speed(stages["timed"]))
    elif "end" not in stages and found[-1].state != "broken":
        found.append(Diagnosis("speed", "broken", f"a training step failed: {tried.why}"))
    return found


def _torch(torch: dict[str, Any]) -> Diagnosis:
    build = next((f"{n} {torch[n.lower()]}" for n in ("CUDA", "HIP") if torch[n.lower()]), None)
    says = f"{torch['version']}, built for {build or 'processors only'}"
    return Diagnosis("torch", "ok", says, figures=torch)


def _gpu(torch: dict[str, Any]) -> Diagnosis:
    seen = [*torch["gpus"], *(["Apple's (MPS)"] if torch["mps"] else [])]
    if seen:
        says = f"{', '.join(seen)}; there the layers run on torch's own kernels"
        return Diagnosis("gpu", "ok", says, figures={"gpus": seen})
    if shutil.which("nvidia-smi") and not torch["cuda"]:
        return Diagnosis(
            "gpu",
            "note",
            "nvidia-smi is installed, but this torch is built for processors only",
            "Nothing runs on the GPU.",
            "install torch for CUDA, by the command that its site gives",
            {"gpus": []},
        )
    return Diagnosis("gpu", "ok", "torch sees none; bptt needs none", figures={"gpus": []})


def _threads(counts: dict[str, Any]) -> Diagnosis:
    usable, torch = counts["usable"], counts["torch"]
    limits = [f"{counts['affinity']} by affinity"] if counts["affinity"] else []
    quota = counts["quota"]
    limits.append("no quota" if quota is None else f"a quota worth {quota:g} of its control group")
    says = (
        f"torch runs {torch}, on {usable} of {counts['processors']} processors "
        f"({', '.join(limits)})"
    )
    if torch > usable:
        return Diagnosis(
            "threads",
            "note",
            says,
            f"Torch's own operations wait for one another; native kernels take {usable}.",
            f"set OMP_NUM_THREADS={usable}, or call torch.set_num_threads({usable})",
            counts,
        )
    said = [f"{n}={os.environ[n]}" for n in OF_THREADS if os.environ.get(n)]
    if torch < usable and said:
        costs = f"{usable - torch} of the processors are not used: {', '.join(said)} is set."
        return Diagnosis("threads", "note", says, costs, "leave it out to use all", counts)
    return Diagnosis("threads", "ok", says, figures=counts)


def _kernels(tried: Tried) -> Diagnosis:
    """Report which kernels run, and whether they compute the same as plain PyTorch."""
    kernels, chosen = tried.stages.get("kernels"), os.environ.get(VARIABLE)
    twin = f"until then, {VARIABLE}=twin runs everything in plain PyTorch"
    if kernels is None:
        says = f"the native library cannot be loaded: {tried.why}"
        return Diagnosis("kernels", "broken", says, remedy=f"install bptt again; {twin}")
    if "error" in kernels:
        remedy = f"{VARIABLE}={chosen} is set: set what there is, or nothing"
        return Diagnosis("kernels", "broken", kernels["error"], None, remedy, kernels)
    if kernels["name"] != "native":
        return _plain(kernels, tried.stages.get("timed"), chosen)
    bf16 = " with bf16" if kernels["bf16"] else ""
    says = f"native, {kernels['isa']}{bf16}" + (f", {VARIABLE}={chosen} is set" if chosen else "")
    remedy = f"report it, with what bptt doctor --json - prints; {twin}"
    off = tried.stages.get("checked")
    if off is None:
        says += f"; they fail: {tried.why}"
        return Diagnosis("kernels", "broken", says, None, remedy, kernels)
    figures = {**kernels, "deviation": off}
    wrong = [kind for kind, d in off.items() if d is None or d > TOLERANCE[kind]]
    if wrong:
        says += f"; in {_and(wrong)} they do not compute what plain PyTorch does"
        amounts = ", ".join(f"{k} {_amount(off[k])}" for k in wrong)
        costs = f"Largest relative deviation: {amounts}. Do not train with them."
        return Diagnosis("kernels", "broken", says, costs, remedy, figures)
    near = ", ".join(f"{kind} {_amount(d)}" for kind, d in off.items())
    says += f"; checked against plain PyTorch, largest deviation: {near}"
    if kernels["fewer"]:
        costs = f"A call takes {_threads_of(kernels)}: {kernels['fewer']}."
        return Diagnosis("kernels", "note", says, costs, figures=figures)
    return Diagnosis("kernels", "ok", says, figures=figures)


def _threads_of(kernels: dict[str, Any]) -> str:
    return f"{kernels['threads']} thread{'s' if kernels['threads'] != 1 else ''}"


def _amount(deviation: float | None) -> str:
    return "not finite" if deviation is None else f"{deviation:.0e}"


def _plain(kernels: dict[str, Any], timed: dict[str, Any] | None, chosen: str | None) -> Diagnosis:
    """Report why layers run in plain PyTorch, and what that costs, as it was just measured."""
    costs = None
    if timed is not None and (why := _untimed(timed)) is not None:
        costs = (
            f"Layers run in plain PyTorch, which takes longer; how much longer is not known: {why}."
        )
    elif timed is not None:
        engine = "native" if "native" in timed["ratios"] else "torch.nn"
        whose = "natively" if engine == "native" else "with torch.nn"
        slower = [1 / timed["ratios"][engine][cell] for cell in CELLS]
        costs = (
            f"Layers run in plain PyTorch: a training step of an {_and(CELLS)} takes "
            f"{_and(map(_times, slower))} times as long as {whose}, measured just now."
        )
    if chosen == "twin":
        says = f"plain PyTorch, because {VARIABLE}=twin is set"
        return Diagnosis("kernels", "note", says, costs, f"unset {VARIABLE}", kernels)
    if "absent" in kernels:
        found, _, remedy = kernels["absent"].partition(": ")
        return Diagnosis("kernels", "missing", f"no native ones: {found}", costs, remedy, kernels)
    remedy = "install bptt again, with pip's --force-reinstall --no-deps --no-cache-dir"
    return Diagnosis("kernels", "broken", str(kernels["reason"]), costs, remedy, kernels)


def _untimed(timed: dict[str, Any]) -> str | None:
    """Return why there are no times; None where there are."""
    if "load" in timed:
        return f"the machine is busy (load {timed['load']:g}), so nothing was timed"
    if "late" in timed:
        late = f"{timed['late']:g} seconds were not enough to time each layer"
        return f"the machine is too busy or too slow: {late}"
    return None


def _speed(timed: dict[str, Any]) -> Diagnosis:
    if (why := _untimed(timed)) is not None:
        return Diagnosis("speed", "note", why, None, "measure again when it is idle", timed)
    T, B, _, H = timed["shape"]
    names = {"twin": "plain PyTorch", "native": "native kernels", "torch.nn": "torch.nn"}
    ratios = timed["ratios"].items()
    each = [
        f"{cell} {ms:.3g} ms ("
        + ", ".join(f"{names[engine]} {_times(found[cell])}×" for engine, found in ratios)
        + ")"
        for cell, ms in timed["milliseconds"].items()
    ]
    says = f"a training step of {H} units, {T} steps of {B} sequences: {', '.join(each)}"
    return Diagnosis("speed", "ok", says, figures=timed)


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 9.95 else f"{ratio:.0f}"


def _and(parts: Iterable[str]) -> str:
    """Write a list.

    >>> _and(["RNN", "GRU", "LSTM"])
    'RNN, GRU and LSTM'
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
