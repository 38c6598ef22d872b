"""The mask in the kernels: which tokens are real, and which segment each belongs to.

A real token has a rank among the real tokens of its sequence. Segments are cut by rank (eq. 16), so
neither where padding stands nor how much of it there is can matter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tokens(NamedTuple):
    """The real tokens of every sequence; all three None without a mask: every token is real."""

    ranks: Tensor | None = None  # int32 [B, N], -1 at padding
    positions: Tensor | None = None  # int32 [B, N], of the real token of each rank
    lengths: Tensor | None = None  # int32 [B], L


def find_tokens(mask: Tensor | None) -> Tokens:
    """Finds the real tokens from a mask, bool [B, N] or None, without reading from the device."""
    if mask is None:
        return Tokens()
    batch, n = mask.shape
    ranks = (mask.cumsum(1) - 1).masked_fill(~mask, n)
    everywhere = torch.arange(n, dtype=torch.int32, device=mask.device).expand(batch, n)
    positions = torch.zeros(batch, n + 1, dtype=torch.int32, device=mask.device)
    positions = positions.scatter(1, ranks, everywhere)[:, :n].contiguous()
    ranks = ranks.masked_fill(~mask, -1).int()
    return Tokens(ranks, positions, mask.sum(1, dtype=torch.int32))


@triton.jit
def load_ranks(p_ranks, i_b, o_n, N):
    """Loads the ranks of the tokens o_n, [BN]; -1 at padding and outside 0 ... N - 1."""
    m_n = (o_n >= 0) & (o_n < N)
    if p_ranks is None:
        return tl.where(m_n, o_n, -1)
    else:
        return tl.load(p_ranks + i_b.to(tl.int64) * N + o_n, mask=m_n, other=-1)


@triton.jit
def load_length(p_lengths, i_b, N):
    if p_lengths is None:
        return N
    else:
        return tl.load(p_lengths + i_b)


@triton.jit
def segment_of(b_rank, L, M):
    """Finds the segment of each rank: the first (s + 1) M - L hold s = L // M, the others s + 1."""
    size = L // M
    short = (size + 1) * M - L
    in_short = b_rank // tl.maximum(size, 1)
    in_long = short + (b_rank - short * size) // (size + 1)
    return tl.where(b_rank < short * size, in_short, in_long)


@triton.jit
def load_rows(p_x, o_n, s_n, m_n, D, BD: tl.constexpr):
    """Loads rows o_n of one head, [BN, BD]; zero where m_n is False and beyond D."""
    o_d = tl.arange(0, BD)
    p_rows = p_x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :]
    return tl.load(p_rows, mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(p_x, o_n, s_n, m_n, D, b_x, BD: tl.constexpr):
    o_d = tl.arange(0, BD)
    p_rows = p_x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :]
    tl.store(p_rows, b_x.to(p_x.dtype.element_ty), mask=m_n[:, None] & (o_d < D)[None, :])


@triton.jit
def head_of(p_x, i_b, i_h, s_b, s_h):
    """Returns the pointer to the first token of head i_h of sequence i_b."""
    return p_x + i_b.to(tl.int64) * s_b + i_h.to(tl.int64) * s_h


@triton.jit
def product(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """acc + a b, accumulated in the dtype of acc: float32, or float64 of float64.

    "emulated" multiplies in the dtype of acc: the interpreter multiplies the bits of bfloat16.
    """
    if PRECISION == "emulated":
        b_a, b_b = b_a.to(b_acc.dtype), b_b.to(b_acc.dtype)
        return tl.dot(b_a, b_b, b_acc, input_precision="ieee", out_dtype=b_acc.dtype)
    else:
        return tl.dot(b_a, b_b, b_acc, input_precision=PRECISION, out_dtype=b_acc.dtype)
