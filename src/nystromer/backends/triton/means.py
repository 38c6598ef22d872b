"""Segment means over real tokens (eq. 16): the landmarks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.tiles import Tiles, for_any_length, padded
from nystromer.backends.triton.tokens import Tokens, head_of, load_length, load_rows

ROUNDS = 16  # tiles of one segment that a program adds up


@for_any_length
def means_fwd_kernel(
    p_x, s_xb, s_xh, s_xn, p_positions, p_lengths, p_means, H, N, M, D,
    BN: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One program: TILES * BN tokens of one segment, their sum over the segment's size."""
    i_bh, i_m, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_b, i_h = i_bh // H, i_bh % H
    L = load_length(p_lengths, i_b, N)
    size = L // M
    short = (size + 1) * M - L
    first = i_m * size + tl.maximum(i_m - short, 0)
    count = size + (i_m >= short).to(tl.int32)
    p_x = head_of(p_x, i_b, i_h, s_xb, s_xh)
    b_sum = tl.zeros([BN, BD], dtype=p_means.dtype.element_ty)
    for i_t in range(TILES):
        o_r = (i_s * TILES + i_t) * BN + tl.arange(0, BN)
        m_n = o_r < count
        o_n = first + o_r
        if p_positions is not None:
            o_n = tl.load(p_positions + i_b.to(tl.int64) * N + o_n, mask=m_n, other=0)
        # [BN, BD]
        b_sum += load_rows(p_x, o_n, s_xn, m_n, D, BD).to(b_sum.dtype)
    b_mean = tl.sum(b_sum, 0) / tl.maximum(count, 1).to(b_sum.dtype)  # [BD]
    o_d = tl.arange(0, BD)
    i_row = (i_s.to(tl.int64) * tl.num_programs(0) + i_bh) * M + i_m
    tl.store(p_means + i_row * D + o_d, b_mean, mask=o_d < D)


def means(
    x: Tensor, num_landmarks: int, tokens: Tokens, dtype: torch.dtype, tiles: Tiles
) -> Tensor:
    """Returns the segment means of x [B, H, N, D], [B, H, M, D]; zero where L < M."""
    batch, heads, n, dim = x.shape
    longest = triton.cdiv(n, num_landmarks)  # segment, whatever the mask
    rows = min(tiles.tokens, padded(longest))
    rounds = min(ROUNDS, triton.next_power_of_2(triton.cdiv(longest, rows)))
    splits = triton.cdiv(longest, rounds * rows)
    out = x.new_empty(splits, batch, heads, num_landmarks, dim, dtype=dtype)
    means_fwd_kernel[(batch * heads, num_landmarks, splits)](
        x, *x.stride()[:3], tokens.positions, tokens.lengths, out, heads, n, num_landmarks, dim,
        BN=rows, BD=padded(dim), TILES=rounds, num_warps=tiles.warps,
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)
