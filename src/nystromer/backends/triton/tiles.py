"""Tile sizes of the kernels: one small table, chosen from what compiles well for sm_90.

They depend on D, M and the width of the dtype alone, so neither the batch nor the device changes
the order of a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

# A kernel is compiled once for all lengths, not anew for those that 16 divides.
for_any_length = triton.jit(do_not_specialize=["N", "NK", "splits", "tiles"])
CHUNK = 32  # rows of a convolution's window at a time


class Tiles(NamedTuple):
    """BM landmarks and BN tokens of a program, its warps, and the stages of its loads."""

    landmarks: int
    tokens: int
    warps: int
    stages: int


def padded(size: int) -> int:
    """Returns the power of two, at least 16, that holds a size: what tl.dot takes."""
    return max(16, 1 << (size - 1).bit_length())


def tiles_for(query: Tensor, value: Tensor, num_landmarks: int) -> Tiles:
    dim = padded(max(query.shape[3], value.shape[3]))
    landmarks = min(32 if dim == 256 else 64, padded(num_landmarks))
    if query.element_size() == 2 and dim == 256:
        return Tiles(landmarks, 32, 8, 1)
    if query.element_size() == 2:
        return Tiles(landmarks, 64, 4, 2)
    if query.element_size() == 8:
        return Tiles(landmarks, 64, 4, 1)
    return Tiles(16, 16, 4, 1) if dim == 256 else Tiles(min(32, landmarks), 32, 8, 1)


def split(n: int, tile: int) -> tuple[int, int]:
    """(splits, tiles in each) of n tokens: 8 to 11 √n tokens a split, whatever the batch is."""
    tokens = max(tile, 8 << n.bit_length() // 2)
    return -(-n // tokens), tokens // tile


def precision() -> str:
    """Says how float32 is multiplied: exactly, unless torch's own setting allows tf32."""
    if triton.knobs.runtime.interpret:
        return "emulated"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def small_precision() -> str:
    """Says how the small matrix is multiplied: as float32, on tensor cores where Triton can."""
    if triton.knobs.runtime.interpret:
        return "emulated"
    return "ieee" if torch.version.hip else "tf32x3"
