"""PPEG, the pyramid of convolutions of TransMIL over the square of a bag's patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

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
        kernel, bias = self._sum()
        moved = [self._moved(part, kernel, bias) for part in alike(x, lengths)]
        return moved[0] if len(moved) == 1 else pad_bags([part[0] for part in moved])[0]

    def of_part(self, x: Tensor, tokens: int, shared: Any) -> Tensor:
        """One process's part of one bag of 1 + S² tokens, x [1, part, C], whose others are with the
        other processes of a SharedSequence. Returns [1, part, C]."""
        side, reach = isqrt(tokens - 1), 3
        start, stop = shared.bounds(tokens)
        near, before = shared.with_neighbours(x, tokens, reach * side + reach)
        first = start - before - 1  # the first patch at hand; -1: the class token
        if first < 0:
            first, near = 0, near[:, 1:]
        is_class = int(start == 0 < stop)
        begin, end = start + is_class - 1, stop - 1  # patches of this part
        kernel, bias = self._sum()
        if begin >= end:  # the others wait for the gradients all the same
            return x + 0.0 * (near.sum() + kernel.sum() + bias.sum())
        top, bottom = begin // side - reach, (end - 1) // side + reach
        missing_ahead = first - top * side  # negative: more than the rows need
        missing_behind = (bottom + 1) * side - first - near.shape[1]
        rows = F.pad(near, (0, 0, missing_ahead, missing_behind)).mT.unflatten(2, (-1, side))
        y = F.conv2d(rows, kernel, bias, padding=(0, reach), groups=x.shape[2]).flatten(2).mT
        begin -= (top + reach) * side
        y = y[:, begin : begin + x.shape[1] - is_class]
        return torch.cat([x[:, :is_class], x[:, is_class:] + y], 1)

    def _sum(self) -> tuple[Tensor, Tensor]:
        """Returns the kernel and the bias of the three together."""
        kernel = self.proj.weight + F.pad(self.proj1.weight, (1,) * 4)
        kernel = kernel + F.pad(self.proj2.weight, (2,) * 4)
        return kernel, self.proj.bias + self.proj1.bias + self.proj2.bias  # type: ignore[operator]

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
