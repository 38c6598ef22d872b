"""Nyström attention one sequence at a time, a block of tokens at a time: no N x M table exists.

A sequence is cut to its real tokens first, so padding and batch neighbours cannot reach it. Three
phases: the landmarks of every sequence gather from its keys; the small M x M problems are solved,
all at once; the queries of every sequence read the result. Autograd and torch.compile see one
opaque operation (and one for its backward), which saves the inputs and a few [B, H, M, D] tensors.
"""

from __future__ import annotations

from torch import Tensor

from nystromer.backends.blocked.operation import blocked_forward
from nystromer.pinv import Pinv


def unsupported(query: Tensor, key: Tensor, value: Tensor, num_landmarks: int) -> str | None:
    return None


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
    return blocked_forward(query, key, value, mask, query_mask, conv_weight, *given, *settings)[0]
