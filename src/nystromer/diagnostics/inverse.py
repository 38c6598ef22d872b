"""How far the inverse of kernel_2 has come after every step of eq. 14."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystromer.landmarks import segment_means
from nystromer.pinv import pinv_start

INVERSE_STEPS = 24  # of the inverse that are followed


@dataclass(frozen=True)
class Inverse:
    r"""The inverse of A = kernel_2; of all numbers the worst head's.

    With the singular values σ of A and c = ‖A‖_1 ‖A‖_inf, A Z_j has the singular values t_j of the
    recursion t_0 = σ² / c, t_{j+1} = t_j (13 - 15 t_j + 7 t_j² - t_j³) / 4, which goes to 1.

    Args:
        residuals: ‖A Z_j - A A⁺‖_F / ‖A A⁺‖_F after j = 0 ... 24 steps.
        margin: 1 - ‖A A⁺ - A Z_0‖_2 = min σ² / c over the σ that are not zero in float64. Lemma 1
            asks that it be above 0. A small one grows 3.25 times a step: six steps invert the
            directions above about 1/1200 and damp the others.
        condition: max σ / min σ.
    """

    residuals: tuple[float, ...]
    margin: float
    condition: float

    @property
    def converges(self) -> bool:
        """Lemma 1: ‖A A⁺ - A Z_0‖_2 < 1."""
        return self.margin > 0


def inverse_of(q: Tensor, k: Tensor, m: int, scale: float, pinv_init: str) -> Inverse:
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
