"""The content of a gradient flow's page: the flows, checked, and their matrices in few bytes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bptt.errors import ConfigError

FORMAT, VERSION = "bptt.flow", 2
MOST = 300
"""Rows and columns of a matrix in the page; longer sequences are shown in blocks of steps."""


@runtime_checkable
class Written(Protocol):
    """An object that can write itself as a flow's dict, as :class:`bptt.GradientFlow` does."""

    def to_dict(self) -> Any:
        """Return the flow as plain data."""
        ...


Flow: TypeAlias = Mapping[str, Any] | Written
"""A gradient flow, or the dict from its ``to_dict()``, possibly read from a JSON file."""


def as_dict(flow: Flow) -> dict[str, Any]:
    """Return a flow as a dict, and check that everything needed is there and consistent.

    Args:
        flow: a result of :func:`bptt.gradient_flow`, or the dict of its ``to_dict()``.

    Returns:
        The dict; numbers that are not finite are None, except those of the matrices.

    Raises:
        ConfigError: it is not a flow, has another version, or inconsistent sizes.
    """
    found = flow.to_dict() if hasattr(flow, "to_dict") else flow
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(
            f"this is not a gradient flow: its format is {said!r}, not {FORMAT!r}; pass a result "
            "of bptt.gradient_flow, or the dict from its to_dict()"
        )
    if found.get("version") != VERSION:
        raise ConfigError(
            f"this gradient flow has version {found.get('version')!r}, but this bptt reads "
            f"version {VERSION}; measure it again, or use the bptt that wrote it"
        )
    large = {"states", "attribution"}
    clean = {key: v if key in large else _finite(v) for key, v in found.items()}
    _check(clean)
    return clean


def packed(flow: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's data for a flow: the dict, with its matrices as bytes in base64.

    A matrix of norms becomes log10 of them, float32, NaN where there is none; an attribution stays
    as it is. Only entries with s ≤ t are kept, row by row. With more than MOST steps, a value is
    the mean over a block of steps, ``block`` wide and ``rows`` high.

    Args:
        flow: a result of :func:`as_dict`.
    """
    times, T = flow["times"], flow["steps"]
    block, rows = -(-T // MOST), -(-len(times) // MOST)
    ends = [times[min(n + rows, len(times)) - 1] for n in range(0, len(times), rows)]

    def pack(matrix: Sequence[Sequence[float | None]], logs: bool) -> str:
        mean = _blocks(np.array(matrix, np.float64), np.array(times), rows, block)
        with np.errstate(divide="ignore"):
            kept = np.log10(mean) if logs else np.clip(mean, -3e38, 3e38)
        below = [row[: end // block + 1] for row, end in zip(kept, ends, strict=True)]
        return base64.b64encode(np.concatenate(below).astype("<f4").tobytes()).decode()

    states = [
        {"layer": s["layer"], "name": s["name"], "norms": pack(s["norms"], True)}
        for s in flow["states"]
    ]
    attribution = flow.get("attribution")
    attribution = None if attribution is None else pack(attribution, False)
    return {**flow, "states": states, "attribution": attribution, "block": block, "rows": rows}


def _blocks(
    matrix: NDArray[np.float64], times: NDArray[np.int64], rows: int, block: int
) -> NDArray[np.float64]:
    """Means over blocks of the defined entries with s ≤ t."""
    N, T = matrix.shape
    given = np.isfinite(matrix) & (np.arange(T) <= times[:, None])
    down, across = -(-N // rows), -(-T // block)
    room = ((0, down * rows - N), (0, across * block - T))
    shape = (down, rows, across, block)
    sums = np.pad(np.where(given, matrix, 0), room).reshape(shape).sum((1, 3))
    counts = np.pad(given, room).reshape(shape).sum((1, 3))
    means = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _check(flow: Mapping[str, Any]) -> None:
    needed = ("name", "module", "steps", "times", "states", "losses", "by_lag", "verdict")
    missing = [key for key in needed if flow.get(key) is None]
    if missing:
        raise ConfigError(f"this gradient flow lacks {', '.join(missing)}")
    T, times = flow["steps"], flow["times"]
    if not times or sorted(set(times)) != list(times) or times[0] < 0 or times[-1] >= T:
        raise ConfigError(
            f"a gradient flow's times must rise within 0 to steps - 1 = {T - 1}, got {times}"
        )
    N = len(times)
    tables = {f"norms of layer {s['layer']} {s['name']}": s["norms"] for s in flow["states"]}
    if not tables:
        raise ConfigError("this gradient flow has no states, so there is nothing to show")
    if flow.get("attribution") is not None:
        tables["attribution"] = flow["attribution"]
    for name, table in tables.items():
        if len(table) != N or any(len(row) != T for row in table):
            sizes = sorted({len(row) for row in table})
            raise ConfigError(f"{name}: expected {N} rows of {T}, got {len(table)} of {sizes}")
    for name, length in (("tokens", T), ("targets", T), ("losses", N)):
        if flow.get(name) is not None and len(flow[name]) != length:
            raise ConfigError(f"{name}: expected {length} of them, got {len(flow[name])}")
    if len({len(flow["by_lag"][key]) for key in ("lag", "mean", "low", "high")}) != 1:
        raise ConfigError("by_lag: lag, mean, low and high must be equally long")
