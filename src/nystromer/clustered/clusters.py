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
    the last one at most: cluster c holds order[:, c * size : (c + 1) * size].
    """

    order: Tensor
    size: int

    @property
    def count(self) -> int:
        """C"""
        return -(-self.order.shape[1] // self.size)

    @property
    def slots(self) -> int:
        """C * size, at least L."""
        return self.count * self.size

    @property
    def places(self) -> Tensor:
        """Where in the order a token stands, [H, L]."""
        ranks = torch.arange(self.order.shape[1], device=self.order.device)
        return torch.empty_like(self.order).scatter_(1, self.order, ranks.expand_as(self.order))

    def of_heads(self, i: int, j: int) -> Clusters:
        return Clusters(self.order[i:j], self.size)

    def sizes(self, like: Tensor) -> Tensor:
        """Tokens in each cluster, [C, 1], dtype and device of `like`."""
        sizes = like.new_full((self.count, 1), self.size)
        sizes[-1] = self.order.shape[1] - (self.count - 1) * self.size
        return sizes


def cluster_size(length: int, count: int) -> int:
    """Tokens of each of at most `count` clusters of L tokens: ceil(L / count)."""
    return -(-length // count)


def bisected(x: Tensor, count: int) -> Clusters:
    """At most `count` clusters of ceil(L / count) tokens (the last may have fewer).

    All tokens are cut in two at the median of their projections on a direction, then each half is,
    and so on. A direction is the leading one of its part of a sample: of the tokens' differences
    from their mean, the longest, after a few power steps. Cost: one product of L x C x D, and
    log2(C) selections among L numbers a head. Nothing is random.

    Args:
        x: Tokens, [H, L, D], L at least 1; no gradient flows.
        count: C, at least 1.
    """
    heads, length, _ = x.shape
    size = cluster_size(length, count)
    levels = (cluster_size(length, size) - 1).bit_length()
    slots = size << levels  # those past the L tokens stay at the end
    order = torch.arange(slots, device=x.device).expand(heads, slots)
    if size > 1:
        for level, direction in enumerate(_directions(x.detach(), levels)):
            parts = order.reshape(heads, 1 << level, -1)
            projections = direction @ x.detach().mT  # [H, parts, L]
            projections = projections.gather(2, parts.clamp(max=length - 1))
            if slots > length:
                projections.masked_fill_(parts >= length, torch.inf)
            order = parts.gather(2, _halves(projections)).reshape(heads, slots)
    return Clusters(order[:, :length], size)


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
        order = _halves((parts @ direction.mT)[..., 0])  # [H, parts, tokens]
        sample = sample.reshape(parts.shape).gather(2, order[..., None].expand(parts.shape))
    return directions


def _leading(x: Tensor) -> Tensor:
    """The leading right singular vector of each [..., S, D], nearly: [..., 1, D]."""
    longest = x.square().sum(-1).argmax(-1)[..., None, None]
    direction = x.gather(-2, longest.expand(*x.shape[:-2], 1, x.shape[-1]))
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize((x @ direction.mT).mT @ x, dim=-1, eps=1e-30)
    return direction


def _halves(x: Tensor) -> Tensor:
    """Indices of the smaller half of x along its last dimension, then of the others.

    Within a half, and among equals at its border, they keep their order. A sort does the same in
    twice the time.
    """
    half = x.shape[-1] // 2
    border = x.kthvalue(half, keepdim=True).values
    small, equal = x < border, x == border
    small |= equal & (equal.cumsum(-1) <= half - small.sum(-1, keepdim=True))
    rank, index = small.cumsum(-1), torch.arange(x.shape[-1], device=x.device)
    place = torch.where(small, rank - 1, rank[..., -1:] + index - rank)
    return torch.empty_like(place).scatter_(-1, place, index.expand_as(place))
