"""The depthwise convolution over values as products with banded matrices, and its gradients.

A tile of BN outputs is a Toeplitz matrix [BN, BN + K - 1] times the window of values around it. The
matrices, one a head, are made once and read by every tile; a window is walked CHUNK rows at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.call import Call
from nystromer.backends.triton.tiles import CHUNK, for_any_length, padded, precision
from nystromer.backends.triton.tokens import head_of, load_ranks, load_rows, product, store_rows
from nystromer.precision import accumulation_dtype


def window(tokens: int, kernel: int, chunk: int) -> int:
    """Returns the rows of a tile's window: tokens + K - 1, up to a whole number of chunks."""
    return triton.cdiv(tokens + kernel - 1, chunk) * chunk


def toeplitz(taps: Tensor, tokens: int, chunk: int) -> Tensor:
    """Returns the matrix [H, BN, window] with taps[h, t] at [h, i, i + t]. taps: [H, K]."""
    kernel = taps.shape[1]
    column = torch.arange(window(tokens, kernel, chunk), device=taps.device)
    tap = column - torch.arange(tokens, device=taps.device)[:, None]  # [BN, window]
    matrix = taps[:, tap.clamp(0, kernel - 1)]
    return matrix.masked_fill((tap < 0) | (tap >= kernel), 0.0)


@triton.jit
def convolve(
    b_acc, p_toeplitz, p_x, s_n, p_ranks, i_b, i_h, i_n, N, D,
    BN: tl.constexpr, BD: tl.constexpr, KERNEL: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + sum_t taps[t] x[n + t - K // 2] for tile i_n of one head, [BN, BD]."""
    WINDOW: tl.constexpr = (BN + KERNEL - 1 + CHUNK - 1) // CHUNK * CHUNK
    o_i = tl.arange(0, BN)
    p_rows = p_toeplitz + (i_h * BN + o_i)[:, None] * WINDOW
    for i_w in range(0, WINDOW, CHUNK):
        o_w = i_w + tl.arange(0, CHUNK)
        o_n = i_n * BN - KERNEL // 2 + o_w
        m_n = load_ranks(p_ranks, i_b, o_n, N) >= 0
        b_x = load_rows(p_x, o_n, s_n, m_n, D, BD)  # [CHUNK, BD]
        b_w = tl.load(p_rows + o_w[None, :])  # [BN, CHUNK]
        b_acc = product(b_w, b_x, b_acc, PRECISION)
    return b_acc


@for_any_length
def convolution_bwd_kernel_taps(
    p_v, s_vb, s_vh, s_vn, p_ranks, p_do, s_ob, s_oh, s_on, p_query_ranks, p_table, H, N, DV,
    BN: tl.constexpr, BDV: tl.constexpr, KERNEL: tl.constexpr, CHUNK: tl.constexpr,
    TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of V times their windows of dO, summed: the taps' gradient lies on the diagonals."""
    chunks = tl.cdiv(BN + KERNEL - 1, CHUNK)
    i_bh, i_w, i_s = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    i_b, i_h = i_bh // H, i_bh % H
    WINDOW: tl.constexpr = (BN + KERNEL - 1 + CHUNK - 1) // CHUNK * CHUNK
    p_v = head_of(p_v, i_b, i_h, s_vb, s_vh)
    p_do = head_of(p_do, i_b, i_h, s_ob, s_oh)
    o_i = tl.arange(0, BN)
    o_w = i_w * CHUNK + tl.arange(0, CHUNK)
    b_table = tl.zeros([BN, CHUNK], dtype=p_table.dtype.element_ty)
    for i_t in range(TILES):
        i_n = (i_s * TILES + i_t) * BN
        m_n = load_ranks(p_ranks, i_b, i_n + o_i, N) >= 0
        b_v = load_rows(p_v, i_n + o_i, s_vn, m_n, DV, BDV)  # [BN, BDV]
        o_n = i_n - KERNEL // 2 + o_w
        m_n = load_ranks(p_query_ranks, i_b, o_n, N) >= 0
        b_do = load_rows(p_do, o_n, s_on, m_n, DV, BDV)  # [CHUNK, BDV]
        b_table = product(b_v, tl.trans(b_do), b_table, PRECISION)
    i_row = (i_s.to(tl.int64) * (tl.num_programs(0) // chunks) + i_bh) * BN
    m_i = o_i >= 0
    store_rows(p_table + i_row * WINDOW + i_w * CHUNK, o_i, WINDOW, m_i, CHUNK, b_table, CHUNK)


def taps_gradient(call: Call, grad_output: Tensor) -> Tensor:
    """Returns the gradient of the taps, [H, K]; empty without a convolution.

    A tile of V times its window of dO, [BN, window], has the taps' gradient on its diagonals, last
    tap first: the tables of all tiles are added up, and their diagonals summed once.
    """
    value, kernel = call.value, call.kernel
    dtype = accumulation_dtype(value.dtype)
    if call.taps is None:
        return value.new_empty(0, dtype=dtype)
    batch, heads, n, dim = value.shape
    tokens = call.tiles.tokens
    width = window(tokens, kernel, CHUNK)
    splits, tiles = call.split_keys()
    table = value.new_empty(splits, batch, heads, tokens, width, dtype=dtype)
    convolution_bwd_kernel_taps[(batch * heads * (width // CHUNK), splits)](
        value, *value.stride()[:3], call.keys.ranks,
        grad_output, *grad_output.stride()[:3], call.queries.ranks, table, heads, n, dim,
        KERNEL=kernel, CHUNK=CHUNK, TILES=tiles, BN=tokens, BDV=padded(dim),
        PRECISION=precision(), num_warps=4, num_stages=call.tiles.stages,
    )  # fmt: skip
    table = table.sum((0, 1))  # [H, BN, window]
    row = torch.arange(tokens, device=table.device)[:, None]
    return table[:, row, row + kernel - 1 - torch.arange(kernel, device=table.device)].sum(1)
