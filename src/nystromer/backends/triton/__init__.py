"""Nyström attention in fused Triton kernels, forward and backward, for GPUs.

Two attentions around one small matrix, each one walk over the tokens: `gather` (kernel_3 · V, the
keys cut into splits that are merged in their order) and `scatter` (kernel_1 · context, with the
convolution). Neither kernel_1 nor kernel_3 exists in memory, forward or backward. Every partial sum
has one writer: nothing is atomic, so runs repeat. Triton itself is imported by the first call.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from nystromer.pinv import Pinv

INSTALLED = find_spec("triton") is not None
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LIMIT = 256  # of D, Dv and M


def unsupported(query: Tensor, key: Tensor, value: Tensor, num_landmarks: int) -> str | None:
    if not INSTALLED:
        return "needs the package triton, which is not installed"
    if query.device.type != "cuda" and not _interpreted():
        return f"needs CUDA tensors, got {query.device.type}"
    if query.dtype not in DTYPES and not _interpreted():
        return f"needs float16, bfloat16 or float32, got {query.dtype}"
    if max(query.shape[3], value.shape[3]) > LIMIT:
        return f"needs heads of at most {LIMIT}, got {query.shape[3]} and {value.shape[3]}"
    if num_landmarks > LIMIT:
        return f"needs at most {LIMIT} landmarks, got {num_landmarks}"
    if query.device.type == "cuda" and not _interpreted() and not torch.version.hip:
        capability = torch.cuda.get_device_capability(query.device)
        if capability < (8, 0):
            return f"needs a GPU of compute capability 8.0, got {capability[0]}.{capability[1]}"
    return None


def _interpreted() -> bool:
    """Triton's interpreter runs on any device, and in float64: how the kernels are tested."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
    from nystromer.backends.triton.operation import triton_forward

    given = (None, None) if landmarks is None else landmarks
    settings = (num_landmarks, scale, *pinv)
    return triton_forward(query, key, value, mask, query_mask, conv_weight, *given, *settings)[0]
