"""The pseudo-inverse of kernel_2, by iteration (eq. 14) or with a ridge."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# what the norms of the start value are taken over, as dimensions of column sums [B, H, M]
NORM_DIMS = {"matrix": (-1,), "sequence": (-2, -1), "batch": (-3, -2, -1)}


class Pinv(NamedTuple):
    """Which pseudo-inverse: `iterations` steps from the start value `init`, or a `ridge`."""

    iterations: int = 6
    init: str = "matrix"
    ridge: float | None = None

    def of(self, matrix: Tensor) -> Tensor:
        """kernel_2⁺, [B, H, M, M]."""
        if self.ridge is not None:
            return ridge_pinv(matrix, self.ridge)
        return iterative_pinv(matrix, self.iterations, self.init)


def pinv_start(matrix: Tensor, init: str = "matrix") -> Tensor:
    r"""Z_0 = A^T / (‖A‖_1 ‖A‖_inf), the start value of eq. 14 (Pan & Schreiber 1991).

    Args:
        matrix: A, [B, H, M, M] (any leading dimensions for `init="matrix"`).
        init: Over what the two norms are taken. "matrix": each matrix its own. "sequence": the
            largest over the heads of a sequence, which is what the published code computes for a
            batch of one. "batch": the largest over everything, only to reproduce the published code
            exactly: one sequence then changes the output of its neighbours.

    Returns:
        Z_0, the shape of `matrix`.
    """
    if not matrix.numel():  # no batch, or no heads
        return matrix.mT
    dims = NORM_DIMS[init]
    column_norm = matrix.abs().sum(-2).amax(dims, True)  # ‖A‖_1  [b, h, 1]
    row_norm = matrix.abs().sum(-1).amax(dims, True)  # ‖A‖_inf  [b, h, 1]
    return matrix.mT / (column_norm * row_norm)[..., None]


def iterative_pinv(matrix: Tensor, iterations: int = 6, init: str = "matrix") -> Tensor:
    r"""A^+ by Z <- 1/4 Z (13 I - A Z (15 I - A Z (7 I - A Z))), eq. 14 (Razavi et al. 2014).

    It converges to the Moore-Penrose inverse if ‖A A^+ - A Z_0‖ < 1 (Lemma 1). Six steps do not get
    there for the matrices of a trained model, and are not meant to: weights are trained against the
    six-step map, and more steps move away from it.

    Args:
        matrix: A, [B, H, M, M], float32 or float64.
        iterations: Steps, 6 in the paper.
        init: "matrix", "sequence" or "batch"; see `pinv_start`.

    Returns:
        Z after the last step, [B, H, M, M].

    Source: Xiong et al. 2021, arXiv:2102.03902, eq. 14 and Lemma 1.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    z = pinv_start(matrix, init)
    for _ in range(iterations):
        az = matrix @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z


def ridge_pinv(matrix: Tensor, ridge: float) -> Tensor:
    r"""(A^T A + ridge I)^-1 A^T: the pseudo-inverse with every singular value kept away from zero.

    A converged inverse without a ridge blows up what the landmarks miss: in a trained encoder the
    error of a layer grows from 0.5 to 17 (see docs/method.md).

    Args:
        matrix: A, [B, H, M, M], float32 or float64.
        ridge: At least 1e-10; 1e-2 and 1e-3 are near the best for trained encoders.

    Returns:
        [B, H, M, M].
    """
    wide = _widened(matrix)
    return torch.cholesky_solve(wide.mT, _ridge_factor(wide, ridge)).to(matrix.dtype)


def ridge_pinv_by_products(matrix: Tensor, ridge: float) -> Tensor:
    """Computes `ridge_pinv` by products of matrices alone, for runtimes without a Cholesky factor.

    Newton's steps Z <- Z (2 I - S Z) for S = A^T A + ridge I, from Z_0 = I / ‖S‖_1. They double the
    digits once ‖I - S Z‖ is below a half, for which it takes log2 of the condition of S, at most
    M ‖A‖ / ridge; five more make it exact.
    """
    wide = _widened(matrix)
    identity = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=matrix.device)
    square = wide.mT @ wide + ridge * identity
    z = identity / square.abs().sum(-1).amax(-1)[..., None, None]
    condition = (matrix.shape[-1] + ridge) / ridge  # rows of A sum to 1
    for _ in range(math.ceil(math.log2(condition)) + 5):
        z = z @ (2 * identity - square @ z)
    return (z @ wide.mT).to(matrix.dtype)


def ridge_pinv_backward(matrix: Tensor, grad: Tensor, ridge: float) -> Tensor:
    r"""Gradient of A from the gradient G of Z = `ridge_pinv(A)`.

    With S = (A^T A + ridge I)^-1 it is (I - A Z) G^T S - Z^T G Z^T.
    """
    wide, grad = _widened(matrix), _widened(grad)
    factor = _ridge_factor(wide, ridge)
    z, gs = (torch.cholesky_solve(x, factor) for x in (wide.mT, grad))
    return (gs.mT - wide @ (z @ gs.mT) - z.mT @ grad @ z.mT).to(matrix.dtype)


def _widened(x: Tensor) -> Tensor:
    """In float64, for A^T A squares the condition of A; Apple's GPUs have float32 alone."""
    return x if x.device.type == "mps" else x.double()


def _ridge_factor(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of A^T A + ridge I; of a matrix with NaN, NaN, its neighbours' apart."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(matrix.mT @ matrix + ridge * identity)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)
