"""iterative_pinv(A) @ x and its gradient, without the inverse: 11 instead of 24 M x M products.

Every iterate of eq. 14 is a polynomial in one symmetric matrix. With c = ‖A‖_1 ‖A‖_inf,
Z_0 = A^T / c and T_0 = A A^T / c,

    A Z_j = T_j,    T_{j+1} = T_j p(T_j),    p(t) = (13 - 15 t + 7 t² - t³) / 4,
    Z_n x = A^T p(T_0) p(T_1) ... p(T_{n-1}) x / c,

so x passes through one polynomial a step, and the chain of T costs two products a step:
T p(T) = -(Y² + 2.75 Y - 3.375 T) / 4 with Y = T² - 3.5 T.

T squares the condition of A, so all of it is computed in float64; with half the products that costs
what eq. 14 costs in float32, and it is the more accurate of the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.pinv import NORM_DIMS


def pinv_product(matrix: Tensor, x: Tensor, iterations: int = 6, init: str = "matrix") -> Tensor:
    """iterative_pinv(matrix, iterations, init) @ x, [B, H, M, D].

    matrix: A, [B, H, M, M], without negative entries; x: [B, H, M, D].
    """
    dtype, matrix, x = x.dtype, matrix.double(), x.double()
    c = _norms(matrix, init)
    for t in _chain(matrix, c, iterations):
        x = _step(t, x)
    return (matrix.mT @ x / c).to(dtype)


def pinv_product_backward(
    matrix: Tensor, x: Tensor, grad: Tensor, iterations: int = 6, init: str = "matrix"
) -> tuple[Tensor, Tensor]:
    """Gradients of matrix and x from that of their `pinv_product`, [B, H, M, D]."""
    dtype, matrix, x, grad = x.dtype, matrix.double(), x.double(), grad.double()
    c = _norms(matrix, init)
    chain = _chain(matrix, c, iterations)
    xs = [x]
    for t in chain:
        xs.append(_step(t, xs[-1]))
    grad_c = -(grad * (matrix.mT @ xs[-1])).sum((-2, -1), keepdim=True) / c**2
    grad_matrix = xs[-1] @ grad.mT / c
    g = matrix @ grad / c  # of x_j, from the last to the first
    grad_t = torch.zeros_like(matrix)  # of T_{j+1}, symmetric
    for j in reversed(range(iterations)):
        t, x = chain[j], xs[j]
        u = t @ x
        w = 7 * x - u
        square = t @ t
        grad_square = 0.25 * g @ w.mT
        grad_w = 0.25 * square @ g
        grad_u = -3.75 * g - grad_w
        direct = grad_u @ x.mT
        g = 3.25 * g + 7 * grad_w + t @ grad_u
        if j < iterations - 1:
            grad_y = grad_t @ (square - 3.5 * t)
            grad_y = -0.25 * (grad_y + grad_y.mT + 2.75 * grad_t)
            grad_square = grad_square + grad_y
            direct = direct - 3.5 * grad_y + 0.84375 * grad_t
        through = _symmetric(grad_square) @ t
        grad_t = _symmetric(direct) + through + through.mT
    grad_matrix += 2 * grad_t @ matrix / c
    grad_c -= (grad_t * chain[0]).sum((-2, -1), keepdim=True) / c
    grad_matrix += _norms_backward(matrix, grad_c, init)
    return grad_matrix.to(dtype), g.to(dtype)


def _chain(matrix: Tensor, c: Tensor, iterations: int) -> list[Tensor]:
    """T_0 ... T_{n-1}."""
    chain = [matrix @ matrix.mT / c]
    for _ in range(iterations - 1):
        t = chain[-1]
        y = t @ t - 3.5 * t
        chain.append(-0.25 * (y @ y + 2.75 * y - 3.375 * t))
    return chain


def _step(t: Tensor, x: Tensor) -> Tensor:
    """p(T) x."""
    u = t @ x
    return 0.25 * (13 * x - 15 * u + t @ (t @ (7 * x - u)))


def _symmetric(x: Tensor) -> Tensor:
    return 0.5 * (x + x.mT)


def _norms(matrix: Tensor, init: str) -> Tensor:
    """c = ‖A‖_1 ‖A‖_inf over what `init` says, [b, h, 1, 1]."""
    dims = NORM_DIMS[init]
    return (matrix.sum(-2).amax(dims, True) * matrix.sum(-1).amax(dims, True))[..., None]


def _norms_backward(matrix: Tensor, grad: Tensor, init: str) -> Tensor:
    """Gradient of A from that of c, [B, H, 1, 1]; equal maxima share it, as in torch's amax."""
    dims = NORM_DIMS[init]
    columns, rows = matrix.sum(-2), matrix.sum(-1)  # [B, H, M]
    column_norm, row_norm = columns.amax(dims, True), rows.amax(dims, True)  # [b, h, 1]
    in_columns, in_rows = columns == column_norm, rows == row_norm
    grad = grad.sum_to_size(*column_norm.shape, 1)
    to_columns = row_norm * in_columns / in_columns.sum(dims, True)
    to_rows = column_norm * in_rows / in_rows.sum(dims, True)
    return grad * (to_columns[..., None, :] + to_rows[..., :, None])
