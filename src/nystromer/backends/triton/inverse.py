"""The M x M inverse of eq. 14 and its gradient, one program a matrix, for M up to 64.

The same steps as `nystromer.pinv`, which larger matrices and the other kinds of inverse use: there
they are two dozen launches, which take longer than the arithmetic of a small matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nystromer.backends.triton.tiles import for_any_length, padded, small_precision
from nystromer.backends.triton.tokens import load_rows, product, store_rows
from nystromer.pinv import Pinv
from nystromer.pinv_gradient import pinv_backward

LIMIT = 64  # landmarks


def invert(pinv: Pinv, matrix: Tensor) -> Tensor:
    """`pinv.of(matrix)`. matrix: [B, H, M, M], float32 (float64 in the interpreter)."""
    if not _fits(pinv, matrix):
        return pinv.of(matrix)
    m = matrix.shape[-1]
    out = matrix.new_empty(matrix.shape)
    inverse_fwd_kernel[(matrix.shape[0] * matrix.shape[1],)](
        matrix.contiguous(), out, m,
        STEPS=pinv.iterations, MP=padded(m), PRECISION=small_precision(), num_warps=4,
    )  # fmt: skip
    return out


def invert_backward(pinv: Pinv, matrix: Tensor, grad: Tensor) -> Tensor:
    """`pinv_gradient.pinv_backward(pinv, matrix, grad)`, in one kernel a matrix."""
    if not _fits(pinv, matrix):
        return pinv_backward(pinv, matrix, grad)
    m = matrix.shape[-1]
    out = matrix.new_empty(matrix.shape)
    steps = matrix.new_empty(pinv.iterations, 5, *matrix.shape)  # Z, W, P_1, P_2, P_3
    inverse_bwd_kernel[(matrix.shape[0] * matrix.shape[1],)](
        matrix.contiguous(), grad.contiguous(), steps, out, m,
        STEPS=pinv.iterations, MP=padded(m), PRECISION=small_precision(), num_warps=4,
    )  # fmt: skip
    return out


def _fits(pinv: Pinv, matrix: Tensor) -> bool:
    return matrix.shape[-1] <= LIMIT and pinv.init == "matrix" and pinv.ridge is None


@triton.jit
def times(b_a, b_b, PRECISION: tl.constexpr):
    return product(b_a, b_b, tl.zeros_like(b_a), PRECISION)


@triton.jit
def diagonal(o_m, factor: tl.constexpr):
    """Returns factor times the identity, [MP, MP]."""
    return tl.where(o_m[:, None] == o_m[None, :], factor, 0.0)


@for_any_length
def inverse_fwd_kernel(p_a, p_z, M, STEPS: tl.constexpr, MP: tl.constexpr, PRECISION: tl.constexpr):
    """Z <- 1/4 Z (13 I - A Z (15 I - A Z (7 I - A Z))) from A^T / (‖A‖_1 ‖A‖_inf), eq. 14."""
    o_m = tl.arange(0, MP)
    i_row = tl.program_id(0).to(tl.int64) * M * M
    b_a = load_rows(p_a + i_row, o_m, M, o_m < M, M, MP)  # [MP, MP], zero beyond M, as Z stays
    b_z = tl.trans(b_a) / (tl.max(tl.sum(b_a, 0)) * tl.max(tl.sum(b_a, 1)))
    for _ in range(STEPS):
        b_w = times(b_a, b_z, PRECISION)
        b_p = diagonal(o_m, 7.0) - b_w
        b_p = diagonal(o_m, 15.0) - times(b_w, b_p, PRECISION)
        b_p = diagonal(o_m, 13.0) - times(b_w, b_p, PRECISION)
        b_z = 0.25 * times(b_z, b_p, PRECISION)
    store_rows(p_z + i_row, o_m, M, o_m < M, M, b_z, MP)


@for_any_length
def inverse_bwd_kernel(
    p_a, p_g, p_steps, p_grad, M,
    STEPS: tl.constexpr, MP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of a step, last to first; see `pinv_gradient.py`."""
    o_m = tl.arange(0, MP)
    m_m = o_m < M
    i_row = tl.program_id(0).to(tl.int64) * M * M
    s_matrix = tl.num_programs(0).to(tl.int64) * M * M
    b_a = load_rows(p_a + i_row, o_m, M, m_m, M, MP)
    b_columns = tl.sum(b_a, 0)
    row_norm = tl.max(tl.sum(b_a, 1))
    c = tl.max(b_columns) * row_norm
    b_z = tl.trans(b_a) / c
    for i in range(STEPS):
        p_step = p_steps + i * 5 * s_matrix + i_row
        b_w = times(b_a, b_z, PRECISION)
        store_rows(p_step, o_m, M, m_m, M, b_z, MP)
        store_rows(p_step + s_matrix, o_m, M, m_m, M, b_w, MP)
        b_p = diagonal(o_m, 7.0) - b_w
        store_rows(p_step + 2 * s_matrix, o_m, M, m_m, M, b_p, MP)
        b_p = diagonal(o_m, 15.0) - times(b_w, b_p, PRECISION)
        store_rows(p_step + 3 * s_matrix, o_m, M, m_m, M, b_p, MP)
        b_p = diagonal(o_m, 13.0) - times(b_w, b_p, PRECISION)
        store_rows(p_step + 4 * s_matrix, o_m, M, m_m, M, b_p, MP)
        b_z = 0.25 * times(b_z, b_p, PRECISION)
    tl.debug_barrier()  # what is read next was written by other threads
    b_g = load_rows(p_g + i_row, o_m, M, m_m, M, MP)
    b_grad = tl.zeros_like(b_a)
    for i in tl.range(STEPS, num_stages=1):
        p_step = p_steps + (STEPS - 1 - i) * 5 * s_matrix + i_row
        b_z = load_rows(p_step, o_m, M, m_m, M, MP)
        b_dp3 = 0.25 * times(tl.trans(b_z), b_g, PRECISION)
        b_w = load_rows(p_step + s_matrix, o_m, M, m_m, M, MP)
        b_dp2 = -times(tl.trans(b_w), b_dp3, PRECISION)
        b_dw = times(tl.trans(b_w), b_dp2, PRECISION)
        b_p = load_rows(p_step + 2 * s_matrix, o_m, M, m_m, M, MP)
        b_dw -= times(b_dp2, tl.trans(b_p), PRECISION)
        b_p = load_rows(p_step + 3 * s_matrix, o_m, M, m_m, M, MP)
        b_dw -= times(b_dp3, tl.trans(b_p), PRECISION)
        b_grad = product(b_dw, tl.trans(b_z), b_grad, PRECISION)
        b_p = load_rows(p_step + 4 * s_matrix, o_m, M, m_m, M, MP)
        b_g = 0.25 * times(b_g, tl.trans(b_p), PRECISION)
        b_p = load_rows(p_a + i_row, o_m, M, m_m, M, MP)
        b_g = product(tl.trans(b_p), b_dw, b_g, PRECISION)
    # Z_0 = A^T / c; equal maxima share its gradient
    dc = -tl.sum(b_g * tl.trans(b_a)) / (c * c)
    b_in_columns = (b_columns == tl.max(b_columns)).to(b_a.dtype)
    b_grad += tl.trans(b_g) / c
    b_grad += (dc * row_norm * b_in_columns / tl.sum(b_in_columns))[None, :]
    store_rows(p_grad + i_row, o_m, M, m_m, M, b_grad, MP)
