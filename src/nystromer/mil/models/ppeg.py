"""PPEG, the pyramid of convolutions of TransMIL over the square of a bag's patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.mil.models.batch import alike, pad_bags


class PPEG(nn.Module):
    """The square of patches plus three depthwise convolutions of it, 7 x 7, 5 x 5 and 3 x 3.

    The three are one 7 x 7 convolution with the sum of their kernels. The class token passes by.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x: [B, T, C]; lengths: 1 + S² of every bag. Returns [B, T, C]."""
        kernel = self.proj.weight + F.pad(self.proj1.weight, (1,) * 4)
        kernel = kernel + F.pad(self.proj2.weight, (2,) * 4)
        bias = self.proj.bias + self.proj1.bias + self.proj2.bias  # type: ignore[operator]
        moved = [self._moved(part, kernel, bias) for part in alike(x, lengths)]
        return moved[0] if len(moved) == 1 else pad_bags([part[0] for part in moved])[0]

    def _moved(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Bags of one size, [B, 1 + S², C]."""
        side = isqrt(x.shape[1] - 1)
        square = x[:, 1:].mT.unflatten(2, (side, side))  # [B, C, S, S]
        y = F.conv2d(square, kernel, bias, padding=3, groups=x.shape[2])
        return torch.cat([x[:, :1], x[:, 1:] + y.flatten(2).mT], 1)


def missing(patches: int) -> int:
    """Returns how many patches are repeated, so that there are S² of them."""
    side = isqrt(patches - 1) + 1  # the least S with S² >= N
    return side * side - patches
