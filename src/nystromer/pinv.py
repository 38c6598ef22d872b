"""The iterative pseudo-inverse of kernel_2 (eq. 14)."""

from __future__ import annotations

import torch
from torch import Tensor

# what the norms of the start value are taken over, as dimensions of column sums [B, H, M]
NORM_DIMS = {"matrix": (-1,), "sequence": (-2, -1), "batch": (-3, -2, -1)}


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
