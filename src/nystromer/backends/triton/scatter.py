"""kernel_1 · context: all queries over the M landmark keys [+ conv(V)].

Landmark keys come times the softmax scale. With L <= M keys only the last L landmarks are in use,
and they are the keys (Lemma 2). With few queries but many keys the landmark queries are the
queries, and each reads the row of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.call import Call
from nystromer.backends.triton.convolution import convolve, toeplitz
from nystromer.backends.triton.tiles import CHUNK, for_any_length, padded
from nystromer.backends.triton.tokens import (
    head_of,
    load_length,
    load_ranks,
    load_rows,
    product,
    segment_of,
    store_rows,
)


@triton.jit
def hide_unused(b_s, b_m, b_segment, LQ, LK, M, EXACT: tl.constexpr):
    """Hides landmarks that stand for nothing: their logits become -inf."""
    b_s = tl.where((b_m >= M - LK) & (b_m < M), b_s, -float("inf"))
    if EXACT:
        is_own = tl.where(b_segment == b_m, 0.0, -float("inf"))
        b_s = tl.where((LQ <= M) & (LK > M), is_own, b_s)
    return b_s


@for_any_length
def scatter_fwd_kernel(
    p_q, s_qb, s_qh, s_qn, p_k, p_context, p_ranks, p_lengths, p_key_lengths,
    p_v, s_vb, s_vh, s_vn, p_key_ranks, p_toeplitz,
    p_o, s_ob, s_oh, s_on, H, N, NK, M, D, DV, tiles,
    MP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    KERNEL: tl.constexpr, CHUNK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """One program: softmax(Q K~ᵀ) context [+ conv(V)] for BN queries, zero at padding."""
    i_bh, i_n = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_row = i_bh.to(tl.int64) * M
    o_n = i_n * BN + tl.arange(0, BN)
    b_rank = load_ranks(p_ranks, i_b, o_n, N)
    m_n = b_rank >= 0
    LQ, LK = load_length(p_lengths, i_b, N), load_length(p_key_lengths, i_b, NK)
    b_segment = segment_of(b_rank, LQ, M)
    b_q = load_rows(head_of(p_q, i_b, i_h, s_qb, s_qh), o_n, s_qn, m_n, D, BD)  # [BN, BD]
    b_o = tl.zeros([BN, BDV], dtype=SUMS)
    b_mass = tl.zeros([BN], dtype=SUMS)
    b_top = tl.full([BN], -float("inf"), dtype=SUMS)
    for i_m in tl.range(0, MP, BM, num_stages=1):
        o_m = i_m + tl.arange(0, BM)
        m_m = o_m < M
        b_k = load_rows(p_k + i_row * D, o_m, D, m_m, D, BD)  # [BM, BD]
        b_c = load_rows(p_context + i_row * DV, o_m, DV, m_m, DV, BDV)  # [BM, BDV]
        b_s = tl.zeros([BN, BM], dtype=b_o.dtype)
        b_s = product(b_q, tl.trans(b_k), b_s, PRECISION)
        b_s = hide_unused(b_s, o_m[None, :], b_segment[:, None], LQ, LK, M, EXACT)
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_shift[:, None])
        b_shrink = tl.exp(b_top - b_shift)
        b_mass = b_mass * b_shrink + tl.sum(b_p, 1)
        b_o = product(b_p.to(b_c.dtype), b_c, b_o * b_shrink[:, None], PRECISION)
        b_top = b_new
    b_o = b_o / tl.where(b_mass == 0.0, 1.0, b_mass)[:, None]
    if KERNEL > 0:
        p_v = head_of(p_v, i_b, i_h, s_vb, s_vh)
        b_o = convolve(
            b_o, p_toeplitz, p_v, s_vn, p_key_ranks, i_b, i_h, i_n, N, DV,
            BN, BDV, KERNEL, CHUNK, PRECISION,
        )  # fmt: skip
    b_o = tl.where(m_n[:, None], b_o, 0.0)
    store_rows(head_of(p_o, i_b, i_h, s_ob, s_oh), o_n, s_on, o_n < N, DV, b_o, BDV)


def scatter(call: Call, k_tilde: Tensor, context: Tensor, output: Tensor) -> None:
    """Writes kernel_1 · context [+ conv(V)] to output. k_tilde: times the scale."""
    tiles = triton.cdiv(call.query.shape[2], call.tiles.tokens)
    sums = tl.float64 if k_tilde.dtype == torch.float64 else tl.float32
    k_tilde, context = (x.to(call.query.dtype) for x in (k_tilde, context))  # read by every tile
    matrices = None if call.taps is None else toeplitz(call.taps, call.tiles.tokens, CHUNK)
    scatter_fwd_kernel[(call.heads * tiles,)](
        call.query, *call.query.stride()[:3], k_tilde, context, *call.query_tokens(),
        call.value, *call.value.stride()[:3], call.keys.ranks, matrices,
        output, *output.stride()[:3], *call.query_sizes(), tiles,
        MP=padded(call.num_landmarks), KERNEL=call.kernel, CHUNK=CHUNK, SUMS=sums,
        **call.options(),
    )  # fmt: skip
