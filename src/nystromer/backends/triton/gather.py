"""kernel_3 · V: the M landmark queries over all keys.

Keys are cut into splits; each gives a sum under its own running maximum, and the splits are merged
in their order. Landmark queries come times the softmax scale. A sequence of at most M keys needs no
logits: its landmarks are its tokens, so each gathers the value of its own (Lemma 2).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.call import Call
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


@triton.jit
def hide_padding(b_s, b_rank, b_m, L, M, EXACT: tl.constexpr):
    """Hides padding: its logits become -inf. With few keys, a landmark sees its own token alone."""
    if EXACT:
        is_own = tl.where(segment_of(b_rank, L, M) == b_m, 0.0, -float("inf"))
        b_s = tl.where(L > M, b_s, is_own)
    return tl.where(b_rank >= 0, b_s, -float("inf"))


@for_any_length
def gather_fwd_kernel(
    p_q, p_k, s_kb, s_kh, s_kn, p_v, s_vb, s_vh, s_vn, p_ranks, p_lengths,
    p_total, p_top, p_mass, H, N, M, D, DV, splits,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    TILES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BM landmarks over TILES * BN keys: exp(S - top) V, its row sums, and top."""
    blocks = tl.cdiv(M, BM)
    i_bhs, i_m = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_bh, i_s = i_bhs // splits, i_bhs % splits
    i_b, i_h = i_bh // H, i_bh % H
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < M
    p_k = head_of(p_k, i_b, i_h, s_kb, s_kh)
    p_v = head_of(p_v, i_b, i_h, s_vb, s_vh)
    # [BM, BD]
    b_q = load_rows(p_q + i_bh.to(tl.int64) * M * D, o_m, D, m_m, D, BD).to(p_k.dtype.element_ty)
    b_total = tl.zeros([BM, BDV], dtype=p_total.dtype.element_ty)
    b_mass = tl.zeros([BM], dtype=p_total.dtype.element_ty)
    b_top = tl.full([BM], -float("inf"), dtype=p_total.dtype.element_ty)
    L = load_length(p_lengths, i_b, N)
    for i_t in range(TILES):
        o_n = (i_s * TILES + i_t) * BN + tl.arange(0, BN)
        b_rank = load_ranks(p_ranks, i_b, o_n, N)
        m_n = b_rank >= 0
        b_k = load_rows(p_k, o_n, s_kn, m_n, D, BD)  # [BN, BD]
        b_v = load_rows(p_v, o_n, s_vn, m_n, DV, BDV)  # [BN, BDV]
        b_s = tl.zeros([BM, BN], dtype=b_total.dtype)
        b_s = product(b_q, tl.trans(b_k), b_s, PRECISION)
        b_s = hide_padding(b_s, b_rank[None, :], o_m[:, None], L, M, EXACT)
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_shift[:, None])
        b_shrink = tl.exp(b_top - b_shift)
        b_mass = b_mass * b_shrink + tl.sum(b_p, 1)
        b_total = product(b_p.to(b_v.dtype), b_v, b_total * b_shrink[:, None], PRECISION)
        b_top = b_new
    i_row = (i_s.to(tl.int64) * (tl.num_programs(0) // (splits * blocks)) + i_bh) * M
    store_rows(p_total + i_row * DV, o_m, DV, m_m, DV, b_total, BDV)
    tl.store(p_top + i_row + o_m, b_top, mask=m_m)
    tl.store(p_mass + i_row + o_m, b_mass, mask=m_m)


@for_any_length
def gather_fwd_kernel_merge(
    p_total, p_top, p_mass, p_gathered, p_peak, p_sum, M, DV, splits,
    BM: tl.constexpr, BDV: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Sums the splits under their common maximum; rows without a key give 0, maximum 0, sum 1."""
    i_bh, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < M
    b_top = tl.full([BM], -float("inf"), dtype=p_total.dtype.element_ty)
    for i_s in range(SPLITS):
        i_row = (i_s * tl.num_programs(0).to(tl.int64) + i_bh) * M
        m_s = m_m & (i_s < splits)
        b_top = tl.maximum(b_top, tl.load(p_top + i_row + o_m, mask=m_s, other=-float("inf")))
    b_top = tl.where(b_top == -float("inf"), 0.0, b_top)
    b_total = tl.zeros([BM, BDV], dtype=p_total.dtype.element_ty)
    b_mass = tl.zeros([BM], dtype=p_total.dtype.element_ty)
    for i_s in range(SPLITS):
        i_row = (i_s * tl.num_programs(0).to(tl.int64) + i_bh) * M
        m_s = m_m & (i_s < splits)
        b_shrink = tl.exp(tl.load(p_top + i_row + o_m, mask=m_s, other=-float("inf")) - b_top)
        b_mass += b_shrink * tl.load(p_mass + i_row + o_m, mask=m_s, other=0.0)
        b_total += b_shrink[:, None] * load_rows(p_total + i_row * DV, o_m, DV, m_s, DV, BDV)
    b_mass = tl.where(b_mass == 0.0, 1.0, b_mass)
    i_row = i_bh.to(tl.int64) * M
    store_rows(p_gathered + i_row * DV, o_m, DV, m_m, DV, b_total / b_mass[:, None], BDV)
    tl.store(p_peak + i_row + o_m, b_top, mask=m_m)
    tl.store(p_sum + i_row + o_m, b_mass, mask=m_m)


def gather(call: Call, q_tilde: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns kernel_3 · V [B, H, M, Dv], each row's largest logit and its sum of exp [B, H, M]."""
    batch, heads, m, _ = q_tilde.shape
    splits, tiles = call.split_keys()
    dim = call.value.shape[3]
    total = q_tilde.new_empty(splits, batch, heads, m, dim)
    tops, masses = (q_tilde.new_empty(splits, batch, heads, m) for _ in range(2))
    gather_fwd_kernel[call.grid_landmarks(splits)](
        q_tilde, *call.key_arguments(), total, tops, masses, *call.key_sizes(), splits,
        TILES=tiles, **call.options(),
    )  # fmt: skip
    gathered = q_tilde.new_empty(batch, heads, m, dim)
    top, mass = (q_tilde.new_empty(batch, heads, m) for _ in range(2))
    gather_fwd_kernel_merge[(batch * heads, triton.cdiv(m, 16))](
        total, tops, masses, gathered, top, mass, m, dim, splits,
        BM=16, BDV=padded(dim), SPLITS=triton.next_power_of_2(splits),
    )  # fmt: skip
    return gathered, top, mass
