"""Which of torch's operations are which instruction."""

from __future__ import annotations

from typing import Any

import torch

A = torch.ops.aten

_UNARY = (
    "neg abs sign reciprocal sqrt rsqrt exp expm1 log log1p tanh sigmoid relu sin cos erf "
    "floor round atan"
)
_BINARY = "add sub mul div maximum minimum fmod remainder lt le gt ge eq ne logical_and logical_or"
_COSTLY = (
    "reciprocal sqrt rsqrt exp expm1 log log1p tanh sigmoid sin cos erf atan div pow mm sum amax"
)


def _targets(names: str) -> dict[Any, str]:
    found = {}
    for name in names.split():
        packet = getattr(A, name)
        for overload in packet.overloads():
            if "out" not in overload and overload not in ("complex", "int", "decimals"):
                found[getattr(packet, overload)] = name
    return found


UNARY, BINARY, COSTLY = _targets(_UNARY), _targets(_BINARY), _targets(_COSTLY)
BINARY |= {
    A.bitwise_and.Tensor: "logical_and",
    A.bitwise_or.Tensor: "logical_or",
    A.bitwise_xor.Tensor: "ne",
}
UNARY |= {A.logical_not.default: "logical_not", A.bitwise_not.default: "logical_not"}
COSTLY.pop(A.div.Scalar, None)
