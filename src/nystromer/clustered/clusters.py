"""Balanced clusters of the tokens of one sequence, by recursive bisection.

Shapes: H heads, L tokens, D features, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 512  # tokens from which the directions are found; more are no better (docs/log.md)
POWER_STEPS = 3


@dataclass(frozen=True)
class Clusters:
    """Tokens in the order of their clusters.

    order: int64 [H, L], a permutation of the tokens for every head. size: tokens of a cluster, of
    the last one at most: cluster c holds order[:, c * size : (c + 1) * size]. count: C.
    """

    order: Tensor
    size: int
    count: int

    @property
    def slots(self) -> int:
        """C * size, at least L."""
        return self.size * self.count

    def sizes(self, like: Tensor) -> Tensor:
        """Tokens in each cluster, [C, 1], dtype and device of `like`."""
        sizes = like.new_full((self.count, 1), self.size)
        sizes[-1] = self.order.shape[1] - (self.count - 1) * self.size
        return sizes


def bisected(x: Tensor, count: int) -> Clusters:
    """At most `count` clusters of ceil(L / count) tokens (the last may have fewer).

    All tokens are cut in two at the median of their projections on a direction, then each half is,
    and so on. A direction is the leading one of its part of a sample: of the tokens' differences
    from their mean, the longest, after a few power steps. Cost: one product of L x C x D, and
    log2(C) sorts of L numbers a head. Nothing is random.

    Args:
        x: Tokens, [H, L, D], L at least 1; no gradient flows.
        count: C, at least 1.
    """
    heads, length, _ = x.shape
    size = -(-length // count)
    count = -(-length // size)
    levels = (count - 1).bit_length()
    slots = size << levels  # those past the L tokens stay at the end
    order = torch.arange(slots, device=x.device).expand(heads, slots)
    if size > 1:
        for level, direction in enumerate(_directions(x.detach(), levels)):
            parts = order.reshape(heads, 1 << level, -1)
            projections = direction @ x.detach().mT  # [H, parts, L]
            keys = projections.gather(2, parts.clamp(max=length - 1))
            keys.masked_fill_(parts >= length, torch.inf)
            order = parts.gather(2, keys.argsort(dim=2, stable=True)).reshape(heads, slots)
    return Clusters(order[:, :length], size, count)


def _directions(x: Tensor, levels: int) -> list[Tensor]:
    """For every level the directions of its parts, [H, 2^level, D]."""
    heads, length, dim = x.shape
    sampled = min(length, max(SAMPLE, 1 << levels)) >> levels << levels
    sample = x[:, torch.arange(sampled, device=x.device) * length // sampled]
    directions = []
    for level in range(levels):
        parts = sample.reshape(heads, 1 << level, -1, dim)
        parts = parts - parts.mean(2, keepdim=True)
        direction = _leading(parts)
        directions.append(direction[:, :, 0])
        order = (parts @ direction.mT).argsort(dim=2, stable=True)  # [H, parts, tokens, 1]
        sample = sample.reshape(parts.shape).gather(2, order.expand(parts.shape))
    return directions


def _leading(x: Tensor) -> Tensor:
    """The leading right singular vector of each [..., S, D], nearly: [..., 1, D]."""
    longest = x.square().sum(-1).argmax(-1)[..., None, None]
    direction = x.gather(-2, longest.expand(*x.shape[:-2], 1, x.shape[-1]))
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize((x @ direction.mT).mT @ x, dim=-1, eps=1e-30)
    return direction
