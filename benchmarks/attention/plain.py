"""Nyström attention in plain PyTorch, as one would write it: what ours is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.pinv import iterative_pinv


def plain(q: Tensor, k: Tensor, v: Tensor, m: int, taps: Tensor | None) -> Tensor:
    """Computes eq. 14-17 of the paper: [B, H, N, D], N divisible by m, taps [H, K] or none."""
    scale = q.shape[-1] ** -0.5
    q_tilde, k_tilde = (x.unflatten(2, (m, -1)).mean(3) for x in (q, k))
    kernel_1 = torch.softmax(scale * q @ k_tilde.mT, -1)
    kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)
    kernel_3 = torch.softmax(scale * q_tilde @ k.mT, -1)
    inverse = iterative_pinv(kernel_2.float()).to(q.dtype)
    output = kernel_1 @ (inverse @ (kernel_3 @ v))
    if taps is None:
        return output
    weight, padding = taps[:, None, :, None], (taps.shape[1] // 2, 0)
    return output + F.conv2d(v, weight, padding=padding, groups=v.shape[1])
