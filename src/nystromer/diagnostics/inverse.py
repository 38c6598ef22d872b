"""Follows how far the inverse of kernel_2 has come after every step of eq. 14."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystromer.landmarks import segment_means
from nystromer.pinv import pinv_start

INVERSE_STEPS = 24  # steps that are followed


@dataclass(frozen=True)
class Inverse:
    r"""How good the inverse of A = kernel_2 is; every number is that of the worst head.

    Z_j is the inverse after j steps. With the singular values σ of A and c = ‖A‖_1 ‖A‖_inf, those
    of A Z_j are the t_j of t_0 = σ² / c, t_{j+1} = t_j (13 - 15 t_j + 7 t_j² - t_j³) / 4, which go
    to 1.

    Args:
        residuals: ‖A Z_j - A A⁺‖_F / ‖A A⁺‖_F after j = 0 ... 24 steps.
        margin: 1 - ‖A A⁺ - A Z_0‖_2, which is the least σ² / c of the σ that are not zero in
            float64. Lemma 1 asks that it be above 0. A small t_j grows 3.25 times with each step:
            six steps invert the directions with t_0 above about 1/1200 and damp the others.
        condition: max σ / min σ.
    """

    residuals: tuple[float, ...]
    margin: float
    condition: float

    @property
    def converges(self) -> bool:
        """Whether the steps converge, by Lemma 1: ‖A A⁺ - A Z_0‖_2 < 1."""
        return self.margin > 0


def inverse_of(q: Tensor, k: Tensor, m: int, scale: float, pinv_init: str) -> Inverse:
    """Follows the inverse for queries and keys of one sequence, [1, H, N, D], in float64."""
    q_tilde, k_tilde = segment_means(q, m)[0], segment_means(k, m)[0]
    kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)  # [1, H, M, M]
    start = pinv_start(kernel_2, pinv_init)
    c = (kernel_2.mT.norm(dim=(-2, -1)) / start.norm(dim=(-2, -1)))[..., None]  # [1, H, 1]
    sigma = torch.linalg.svdvals(kernel_2)  # [1, H, M]
    nonzero = sigma > m * torch.finfo(sigma.dtype).eps * sigma[..., :1]
    t = sigma**2 / c
    margin = t.masked_fill(~nonzero, torch.inf).min()
    residuals = []
    for _ in range(INVERSE_STEPS + 1):
        off = (1 - t).masked_fill(~nonzero, 0.0).norm(dim=-1) / nonzero.sum(-1).sqrt()
        residuals.append(float(off.max()))
        t = t * (13 - t * (15 - t * (7 - t))) / 4  # eq. 14
    return Inverse(tuple(residuals), float(margin), float((sigma[..., 0] / sigma[..., -1]).max()))
