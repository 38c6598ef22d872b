"""Nyström attention on CPUs as one call into a small C++ library, forward and backward.

The library works head by head and tile by tile on several threads, keeps no N x M table, and
computes in float32, for bfloat16 inputs too. source/call.h says what it is handed;
source/native.cpp, the phases in order; docs/method.md, why.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.backends.native import library
from nystromer.backends.native.operation import native_forward
from nystromer.pinv import Pinv

DTYPES = (torch.float32, torch.bfloat16)


def unsupported(query: Tensor, *rest: object) -> str | None:
    """Returns why the library cannot take such tokens, or None; also of clustered attention."""
    if query.device.type != "cpu":
        return f"needs CPU tensors, got {query.device.type}"
    if query.dtype not in DTYPES:
        return f"computes in float32 and needs float32 or bfloat16, got {query.dtype}"
    return library.MISSING


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
    pinv: Pinv,
    conv_weight: Tensor | None,
    landmarks: tuple[Tensor, Tensor] | None,
) -> Tensor:
    given = (None, None) if landmarks is None else landmarks
    settings = (num_landmarks, scale, *pinv)
    return native_forward(query, key, value, mask, query_mask, conv_weight, *given, *settings)[0]
