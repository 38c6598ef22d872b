"""Gradients of kernel_1 · context: of the landmark keys, of the context and of the queries.

Two walks over the queries: the first ends with the landmarks' gradients, which the small matrix
needs; the second writes the queries', once all of what they sum is known.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.call import Call
from nystromer.backends.triton.scatter import hide_unused
from nystromer.backends.triton.tiles import for_any_length, padded
from nystromer.backends.triton.tokens import (
    head_of,
    load_length,
    load_ranks,
    load_rows,
    product,
    segment_of,
    store_rows,
)


@for_any_length
def scatter_bwd_kernel_rows(
    p_q, s_qb, s_qh, s_qn, p_do, s_ob, s_oh, s_on, p_k, p_context, p_ranks, p_lengths,
    p_key_lengths, p_lse, p_delta, H, N, NK, M, D, DV, tiles,
    MP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Per query: the log of kernel_1's row sum, and delta = rowsum(P ∘ dP), dP = dO contextᵀ."""
    i_bh, i_n = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_row = i_bh.to(tl.int64) * M
    o_n = i_n * BN + tl.arange(0, BN)
    b_rank = load_ranks(p_ranks, i_b, o_n, N)
    m_n = b_rank >= 0
    LQ, LK = load_length(p_lengths, i_b, N), load_length(p_key_lengths, i_b, NK)
    b_segment = segment_of(b_rank, LQ, M)
    b_q = load_rows(head_of(p_q, i_b, i_h, s_qb, s_qh), o_n, s_qn, m_n, D, BD)  # [BN, BD]
    b_do = load_rows(head_of(p_do, i_b, i_h, s_ob, s_oh), o_n, s_on, m_n, DV, BDV)  # [BN, BDV]
    b_delta = tl.zeros([BN], dtype=p_lse.dtype.element_ty)
    b_mass = tl.zeros([BN], dtype=p_lse.dtype.element_ty)
    b_top = tl.full([BN], -float("inf"), dtype=p_lse.dtype.element_ty)
    for i_m in tl.range(0, MP, BM, num_stages=1):
        o_m = i_m + tl.arange(0, BM)
        m_m = o_m < M
        b_k = load_rows(p_k + i_row * D, o_m, D, m_m, D, BD).to(b_q.dtype)  # [BM, BD]
        b_c = load_rows(p_context + i_row * DV, o_m, DV, m_m, DV, BDV).to(b_q.dtype)  # [BM, BDV]
        b_s = tl.zeros([BN, BM], dtype=b_mass.dtype)
        b_s = product(b_q, tl.trans(b_k), b_s, PRECISION)
        b_s = hide_unused(b_s, o_m[None, :], b_segment[:, None], LQ, LK, M, EXACT)
        b_dp = tl.zeros([BN, BM], dtype=b_mass.dtype)
        b_dp = product(b_do, tl.trans(b_c), b_dp, PRECISION)
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_shift[:, None])
        b_shrink = tl.exp(b_top - b_shift)
        b_mass = b_mass * b_shrink + tl.sum(b_p, 1)
        b_delta = b_delta * b_shrink + tl.sum(b_p * b_dp, 1)
        b_top = b_new
    is_empty = b_mass == 0.0
    b_mass = tl.where(is_empty, 1.0, b_mass)
    b_lse = tl.where(is_empty, 0.0, b_top) + tl.log(b_mass)
    i_row = i_bh.to(tl.int64) * N
    tl.store(p_lse + i_row + o_n, b_lse, mask=o_n < N)
    tl.store(p_delta + i_row + o_n, b_delta / b_mass, mask=o_n < N)


@for_any_length
def scatter_bwd_kernel_landmarks(
    p_q, s_qb, s_qh, s_qn, p_do, s_ob, s_oh, s_on, p_k, p_context, p_ranks, p_lengths,
    p_key_lengths, p_lse, p_delta, p_grad_k, p_grad_context, H, N, NK, M, D, DV, splits,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    TILES: tl.constexpr, WHOLE: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK~ += dSᵀ Q, dcontext += Pᵀ dO. WHOLE: all M are here, so lse and delta are made here."""
    blocks = tl.cdiv(M, BM)
    i_bhs, i_m = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_bh, i_s = i_bhs // splits, i_bhs % splits
    i_b, i_h = i_bh // H, i_bh % H
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < M
    i_row = i_bh.to(tl.int64) * M
    LQ, LK = load_length(p_lengths, i_b, N), load_length(p_key_lengths, i_b, NK)
    p_q = head_of(p_q, i_b, i_h, s_qb, s_qh)
    p_do = head_of(p_do, i_b, i_h, s_ob, s_oh)
    # [BM, BD], [BM, BDV]
    b_k = load_rows(p_k + i_row * D, o_m, D, m_m, D, BD).to(p_q.dtype.element_ty)
    b_c = load_rows(p_context + i_row * DV, o_m, DV, m_m, DV, BDV).to(p_q.dtype.element_ty)
    b_dk = tl.zeros([BM, BD], dtype=p_grad_k.dtype.element_ty)
    b_dc = tl.zeros([BM, BDV], dtype=p_grad_k.dtype.element_ty)
    for i_t in range(TILES):
        o_n = (i_s * TILES + i_t) * BN + tl.arange(0, BN)
        b_rank = load_ranks(p_ranks, i_b, o_n, N)
        m_n = b_rank >= 0
        b_q = load_rows(p_q, o_n, s_qn, m_n, D, BD)  # [BN, BD]
        b_do = load_rows(p_do, o_n, s_on, m_n, DV, BDV)  # [BN, BDV]
        b_s = tl.zeros([BM, BN], dtype=b_dk.dtype)
        b_s = product(b_k, tl.trans(b_q), b_s, PRECISION)
        b_segment = segment_of(b_rank, LQ, M)
        b_s = hide_unused(b_s, o_m[:, None], b_segment[None, :], LQ, LK, M, EXACT)
        b_dp = tl.zeros([BM, BN], dtype=b_dk.dtype)
        b_dp = product(b_c, tl.trans(b_do), b_dp, PRECISION)
        p_row = i_bh.to(tl.int64) * N + o_n
        if WHOLE:
            b_top = tl.max(b_s, 0)
            b_top = tl.where(b_top == -float("inf"), 0.0, b_top)
            b_p = tl.exp(b_s - b_top[None, :])
            b_mass = tl.sum(b_p, 0)
            b_mass = tl.where(b_mass == 0.0, 1.0, b_mass)
            b_p = b_p / b_mass[None, :]
            b_delta = tl.sum(b_p * b_dp, 0)
            tl.store(p_lse + p_row, b_top + tl.log(b_mass), mask=o_n < N)
            tl.store(p_delta + p_row, b_delta, mask=o_n < N)
        else:
            b_p = tl.exp(b_s - tl.load(p_lse + p_row, mask=m_n, other=0.0)[None, :])
            b_delta = tl.load(p_delta + p_row, mask=m_n, other=0.0)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dc = product(b_p.to(b_do.dtype), b_do, b_dc, PRECISION)
        b_dk = product(b_ds.to(b_q.dtype), b_q, b_dk, PRECISION)
    i_row += i_s.to(tl.int64) * (tl.num_programs(0) // (splits * blocks)) * M
    store_rows(p_grad_k + i_row * D, o_m, D, m_m, D, b_dk, BD)
    store_rows(p_grad_context + i_row * DV, o_m, DV, m_m, DV, b_dc, BDV)


@for_any_length
def scatter_bwd_kernel_tokens(
    p_q, s_qb, s_qh, s_qn, p_do, s_ob, s_oh, s_on, p_k, p_context, p_share, p_ranks, p_lengths,
    p_key_lengths, p_lse, p_delta, p_dq, s_dqb, s_dqh, s_dqn, H, N, NK, M, D, DV, tiles,
    MP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = dS K~ + share[segment], dS = P ∘ (dP - delta): the second is that of the means."""
    i_bh, i_n = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_row = i_bh.to(tl.int64) * M
    o_n = i_n * BN + tl.arange(0, BN)
    b_rank = load_ranks(p_ranks, i_b, o_n, N)
    m_n = b_rank >= 0
    LQ, LK = load_length(p_lengths, i_b, N), load_length(p_key_lengths, i_b, NK)
    b_segment = segment_of(b_rank, LQ, M)
    b_q = load_rows(head_of(p_q, i_b, i_h, s_qb, s_qh), o_n, s_qn, m_n, D, BD)  # [BN, BD]
    b_do = load_rows(head_of(p_do, i_b, i_h, s_ob, s_oh), o_n, s_on, m_n, DV, BDV)  # [BN, BDV]
    b_lse = tl.load(p_lse + i_bh.to(tl.int64) * N + o_n, mask=m_n, other=0.0)
    b_delta = tl.load(p_delta + i_bh.to(tl.int64) * N + o_n, mask=m_n, other=0.0)
    b_dq = tl.zeros([BN, BD], dtype=p_lse.dtype.element_ty)
    for i_m in tl.range(0, MP, BM, num_stages=1):
        o_m = i_m + tl.arange(0, BM)
        m_m = o_m < M
        b_k = load_rows(p_k + i_row * D, o_m, D, m_m, D, BD)  # [BM, BD]
        b_c = load_rows(p_context + i_row * DV, o_m, DV, m_m, DV, BDV)  # [BM, BDV]
        b_s = tl.zeros([BN, BM], dtype=b_dq.dtype)
        b_s = product(b_q, tl.trans(b_k), b_s, PRECISION)
        b_s = hide_unused(b_s, o_m[None, :], b_segment[:, None], LQ, LK, M, EXACT)
        b_dp = tl.zeros([BN, BM], dtype=b_dq.dtype)
        b_dp = product(b_do, tl.trans(b_c), b_dp, PRECISION)
        b_ds = tl.exp(b_s - b_lse[:, None]) * (b_dp - b_delta[:, None])
        b_dq = product(b_ds.to(b_k.dtype), b_k, b_dq, PRECISION)
    b_dq += load_rows(p_share + i_row * D, b_segment, D, m_n, D, BD)
    b_dq = tl.where(m_n[:, None], b_dq, 0.0)
    store_rows(head_of(p_dq, i_b, i_h, s_dqb, s_dqh), o_n, s_dqn, o_n < N, D, b_dq, BD)


def landmarks_gradient(
    call: Call, grad_output: Tensor, k_tilde: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns gradients of scaled landmark keys and context, and (lse, delta) [B, H, Nq]."""
    batch, heads, n, _ = call.query.shape
    lse, delta = (k_tilde.new_empty(batch, heads, n) for _ in range(2))
    tokens = (call.query, *call.query.stride()[:3], grad_output, *grad_output.stride()[:3])
    arguments = (*tokens, k_tilde, context, *call.query_tokens(), lse, delta)
    whole = call.tiles.landmarks >= call.num_landmarks
    if not whole:
        tiles = triton.cdiv(n, call.tiles.tokens)
        scatter_bwd_kernel_rows[(call.heads * tiles,)](
            *arguments, *call.query_sizes(), tiles,
            MP=padded(call.num_landmarks), **call.options(),
        )  # fmt: skip
    splits, rounds = call.split_queries()
    grad_k = k_tilde.new_empty(splits, *k_tilde.shape)
    grad_context = k_tilde.new_empty(splits, *context.shape)
    scatter_bwd_kernel_landmarks[call.grid_landmarks(splits)](
        *arguments, grad_k, grad_context, *call.query_sizes(), splits,
        TILES=rounds, WHOLE=whole, **call.options(),
    )  # fmt: skip
    return grad_k.sum(0), grad_context.sum(0), lse, delta


def tokens_gradient(
    call: Call,
    grad_output: Tensor,
    k_tilde: Tensor,
    context: Tensor,
    lse: Tensor,
    delta: Tensor,
    share: Tensor,
    grad_query: Tensor,
) -> None:
    """Writes the gradient of query, with that of the segment means: share, [B, H, M, D]."""
    tiles = triton.cdiv(call.query.shape[2], call.tiles.tokens)
    k_tilde, context = (x.to(call.query.dtype) for x in (k_tilde, context))  # read by every tile
    scatter_bwd_kernel_tokens[(call.heads * tiles,)](
        call.query, *call.query.stride()[:3], grad_output, *grad_output.stride()[:3],
        k_tilde, context, share, *call.query_tokens(), lse, delta,
        grad_query, *grad_query.stride()[:3], *call.query_sizes(), tiles,
        MP=padded(call.num_landmarks), **call.options(),
    )  # fmt: skip
