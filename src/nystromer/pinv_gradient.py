"""The gradient of kernel_2 from that of its inverse, in plain torch: any M, any kind of inverse.

Operations below autograd need it written out. A constant added to a row of the gradient is left
away, ‖A‖_inf's: the softmax that made the rows of kernel_2 takes no notice of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.pinv import NORM_DIMS, Pinv, pinv_start, ridge_pinv_backward


def pinv_backward(pinv: Pinv, matrix: Tensor, grad: Tensor) -> Tensor:
    """Returns the gradient of A from that of `pinv.of(A)`. matrix, grad: [B, H, M, M]."""
    if pinv.ridge is not None:
        return ridge_pinv_backward(matrix, grad, pinv.ridge)
    return _steps_backward(matrix, grad, pinv.iterations, pinv.init)


def _steps_backward(matrix: Tensor, grad: Tensor, iterations: int, init: str) -> Tensor:
    """W = A Z, P_1 = 7 I - W, P_2 = 15 I - W P_1, P_3 = 13 I - W P_2, Z' = 1/4 Z P_3, reversed."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    z, steps = pinv_start(matrix, init), []
    for _ in range(iterations):
        w = matrix @ z
        p_1 = 7 * identity - w
        p_2 = 15 * identity - w @ p_1
        p_3 = 13 * identity - w @ p_2
        steps.append((z, w, p_1, p_2, p_3))
        z = 0.25 * z @ p_3
    grad_matrix = torch.zeros_like(matrix)
    for z, w, p_1, p_2, p_3 in reversed(steps):
        grad_p_3 = 0.25 * z.mT @ grad
        grad_p_2 = -w.mT @ grad_p_3
        grad_w = w.mT @ grad_p_2 - grad_p_3 @ p_2.mT - grad_p_2 @ p_1.mT
        grad_matrix += grad_w @ z.mT
        grad = 0.25 * grad @ p_3.mT + matrix.mT @ grad_w
    return grad_matrix + _start_backward(matrix, grad, init)


def _start_backward(matrix: Tensor, grad: Tensor, init: str) -> Tensor:
    """Returns the gradient of A from that of Z_0 = A^T / c; equal maxima share it, as in amax."""
    dims = NORM_DIMS[init]
    columns, rows = matrix.sum(-2), matrix.sum(-1)  # [B, H, M]
    column_norm, row_norm = columns.amax(dims, True), rows.amax(dims, True)  # [b, h, 1]
    c = (column_norm * row_norm)[..., None]
    grad_c = (-(grad * matrix.mT).sum((-2, -1), keepdim=True) / c**2).sum_to_size(c.shape)
    largest = columns == column_norm
    share = row_norm * largest / largest.sum(dims, True)
    return grad.mT / c + grad_c * share[..., None, :]
