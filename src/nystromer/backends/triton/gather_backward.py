"""Gradients of kernel_3 · V: of the landmark queries, of the keys and of the values.

P = exp(S - top) and G, the gradient of the gathered values over kernel_3's row sums, are both of a
size that half precision holds, where kernel_3 itself would be lost: its entries are near 1 / N.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.call import Call
from nystromer.backends.triton.convolution import convolve, toeplitz
from nystromer.backends.triton.gather import hide_padding
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


@for_any_length
def gather_bwd_kernel_landmarks(
    p_q, p_g, p_top, p_bias, p_k, s_kb, s_kh, s_kn, p_v, s_vb, s_vh, s_vn, p_ranks, p_lengths,
    p_grad, p_excess, H, N, M, D, DV, splits,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    TILES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ~ += dS K, dS = P ∘ (G Vᵀ - bias), P = exp(S - top); G is over kernel_3's row sums.

    Excess: the row sums of dS, zero but for its rounding.
    """
    blocks = tl.cdiv(M, BM)
    i_bhs, i_m = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_bh, i_s = i_bhs // splits, i_bhs % splits
    i_b, i_h = i_bh // H, i_bh % H
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < M
    i_row = i_bh.to(tl.int64) * M
    p_k = head_of(p_k, i_b, i_h, s_kb, s_kh)
    p_v = head_of(p_v, i_b, i_h, s_vb, s_vh)
    b_q = load_rows(p_q + i_row * D, o_m, D, m_m, D, BD).to(p_k.dtype.element_ty)  # [BM, BD]
    b_g = load_rows(p_g + i_row * DV, o_m, DV, m_m, DV, BDV)  # [BM, BDV]
    b_top = tl.load(p_top + i_row + o_m, mask=m_m, other=0.0)
    b_bias = tl.load(p_bias + i_row + o_m, mask=m_m, other=0.0)
    b_grad = tl.zeros([BM, BD], dtype=p_grad.dtype.element_ty)
    b_excess = tl.zeros([BM], dtype=p_grad.dtype.element_ty)
    L = load_length(p_lengths, i_b, N)
    for i_t in range(TILES):
        o_n = (i_s * TILES + i_t) * BN + tl.arange(0, BN)
        b_rank = load_ranks(p_ranks, i_b, o_n, N)
        m_n = b_rank >= 0
        b_k = load_rows(p_k, o_n, s_kn, m_n, D, BD)  # [BN, BD]
        b_v = load_rows(p_v, o_n, s_vn, m_n, DV, BDV)  # [BN, BDV]
        b_s = tl.zeros([BM, BN], dtype=b_grad.dtype)
        b_s = product(b_q, tl.trans(b_k), b_s, PRECISION)
        b_s = hide_padding(b_s, b_rank[None, :], o_m[:, None], L, M, EXACT)
        b_p = tl.exp(b_s - b_top[:, None])
        b_dp = tl.zeros([BM, BN], dtype=b_grad.dtype)
        b_dp = product(b_g, tl.trans(b_v), b_dp, PRECISION)
        b_ds = (b_p * (b_dp - b_bias[:, None])).to(b_k.dtype)
        b_grad = product(b_ds, b_k, b_grad, PRECISION)
        b_excess += tl.sum(b_ds.to(b_grad.dtype), 1)
    if EXACT:  # no logits with few keys
        b_grad = tl.where(L > M, b_grad, 0.0)
        b_excess = tl.where(L > M, b_excess, 0.0)
    i_row += i_s.to(tl.int64) * (tl.num_programs(0) // (splits * blocks)) * M
    store_rows(p_grad + i_row * D, o_m, D, m_m, D, b_grad, BD)
    tl.store(p_excess + i_row + o_m, b_excess, mask=m_m)


@for_any_length
def gather_bwd_kernel_tokens(
    p_q, p_g, p_top, p_bias, p_share, p_k, s_kb, s_kh, s_kn, p_v, s_vb, s_vh, s_vn,
    p_ranks, p_lengths, p_do, s_ob, s_oh, s_on, p_query_ranks, p_toeplitz,
    p_dk, s_dkb, s_dkh, s_dkn, p_dv, s_dvb, s_dvh, s_dvn, H, N, M, D, DV, tiles,
    MP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    KERNEL: tl.constexpr, CHUNK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ G [+ convᵀ(dO)], dK = dSᵀ Q~ + share[segment]: the gradient of the segment means."""
    i_bh, i_n = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, i_h = i_bh // H, i_bh % H
    i_row = i_bh.to(tl.int64) * M
    o_n = i_n * BN + tl.arange(0, BN)
    b_rank = load_ranks(p_ranks, i_b, o_n, N)
    m_n = b_rank >= 0
    L = load_length(p_lengths, i_b, N)
    b_segment = segment_of(b_rank, L, M)
    b_k = load_rows(head_of(p_k, i_b, i_h, s_kb, s_kh), o_n, s_kn, m_n, D, BD)  # [BN, BD]
    b_v = load_rows(head_of(p_v, i_b, i_h, s_vb, s_vh), o_n, s_vn, m_n, DV, BDV)  # [BN, BDV]
    b_dk = tl.zeros([BN, BD], dtype=p_top.dtype.element_ty)
    b_dv = tl.zeros([BN, BDV], dtype=p_top.dtype.element_ty)
    for i_m in tl.range(0, MP, BM, num_stages=1):
        o_m = i_m + tl.arange(0, BM)
        m_m = o_m < M
        b_q = load_rows(p_q + i_row * D, o_m, D, m_m, D, BD)  # [BM, BD]
        b_g = load_rows(p_g + i_row * DV, o_m, DV, m_m, DV, BDV)  # [BM, BDV]
        b_top = tl.load(p_top + i_row + o_m, mask=m_m, other=0.0)
        b_bias = tl.load(p_bias + i_row + o_m, mask=m_m, other=0.0)
        b_s = tl.zeros([BN, BM], dtype=b_dk.dtype)
        b_s = product(b_k, tl.trans(b_q), b_s, PRECISION)
        b_s = hide_padding(b_s, b_rank[:, None], o_m[None, :], L, M, EXACT)
        b_p = tl.exp(b_s - b_top[None, :])
        b_dp = tl.zeros([BN, BM], dtype=b_dk.dtype)
        b_dp = product(b_v, tl.trans(b_g), b_dp, PRECISION)
        b_ds = b_p * (b_dp - b_bias[None, :])
        if EXACT:  # no logits with few keys
            b_ds = tl.where(L > M, b_ds, 0.0)
        b_dv = product(b_p.to(b_g.dtype), b_g, b_dv, PRECISION)
        b_dk = product(b_ds.to(b_q.dtype), b_q, b_dk, PRECISION)
    # [BN, BD]
    b_dk += load_rows(p_share + i_row * D, b_segment, D, m_n, D, BD)
    if KERNEL > 0:
        p_do = head_of(p_do, i_b, i_h, s_ob, s_oh)
        b_dv = convolve(
            b_dv, p_toeplitz, p_do, s_on, p_query_ranks, i_b, i_h, i_n, N, DV,
            BN, BDV, KERNEL, CHUNK, PRECISION,
        )  # fmt: skip
    b_dk = tl.where(m_n[:, None], b_dk, 0.0)
    b_dv = tl.where(m_n[:, None], b_dv, 0.0)
    m_n = o_n < N
    store_rows(head_of(p_dk, i_b, i_h, s_dkb, s_dkh), o_n, s_dkn, m_n, D, b_dk, BD)
    store_rows(head_of(p_dv, i_b, i_h, s_dvb, s_dvh), o_n, s_dvn, m_n, DV, b_dv, BDV)


def landmarks_gradient(
    call: Call, q_tilde: Tensor, top: Tensor, grad: Tensor, bias: Tensor, mean: Tensor
) -> Tensor:
    """Returns the gradient of the scaled landmark queries, [B, H, M, D].

    grad: [B, H, M, Dv] in the dtype of value, over the row sums; bias: rowsum(grad * gathered);
    mean: roughly that of the keys, [B, H, 1, D], which rounding must not multiply.
    """
    splits, tiles = call.split_keys()
    out = q_tilde.new_empty(splits, *q_tilde.shape)
    excess = q_tilde.new_empty(splits, *q_tilde.shape[:3], 1)
    gather_bwd_kernel_landmarks[call.grid_landmarks(splits)](
        q_tilde, grad, top, bias, *call.key_arguments(), out, excess, *call.key_sizes(),
        splits,
        TILES=tiles, **call.options(),
    )  # fmt: skip
    return out.sum(0) - excess.sum(0) * mean


def tokens_gradient(
    call: Call,
    q_tilde: Tensor,
    top: Tensor,
    grad: Tensor,
    bias: Tensor,
    share: Tensor,
    grad_output: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Writes the gradients of key and value, with those of the means and of the convolution."""
    tiles = triton.cdiv(call.key.shape[2], call.tiles.tokens)
    q_tilde = q_tilde.to(call.key.dtype)  # read by every tile
    matrices = None if call.taps is None else toeplitz(call.taps.flip(1), call.tiles.tokens, CHUNK)
    gather_bwd_kernel_tokens[(call.heads * tiles,)](
        q_tilde, grad, top, bias, share, *call.key_arguments(),
        grad_output, *grad_output.stride()[:3], call.queries.ranks, matrices,
        grad_key, *grad_key.stride()[:3], grad_value, *grad_value.stride()[:3],
        *call.key_sizes(), tiles, MP=padded(call.num_landmarks),
        KERNEL=call.kernel, CHUNK=CHUNK, **call.options(),
    )  # fmt: skip
