"""Cuts the tokens of one sequence into clusters of equal size: into halves, and those again.

Shapes: H heads, L tokens, D features; C clusters of at most S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 1024  # tokens from which the directions are found (docs/log.md)
POWER_STEPS = 16


@dataclass(frozen=True)
class Clusters:
    """Which tokens are in which cluster.

    order: The tokens by cluster, int64 [H, C S]. Cluster c holds order[:, c S : (c + 1) S]; if it
    has only S - 1 tokens, the last of these is L, which is no token.
    sizes: How many tokens each cluster has, S or S - 1, the same for all heads.
    """

    order: Tensor
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """C, how many clusters there are."""
        return len(self.sizes)

    @property
    def size(self) -> int:
        """S, how many tokens the largest cluster has."""
        return max(self.sizes)

    @property
    def length(self) -> int:
        """L, how many tokens there are."""
        return sum(self.sizes)

    @property
    def places(self) -> Tensor:
        """At which place of the order each token stands, [H, L]."""
        ranks = torch.arange(self.order.shape[1], device=self.order.device)
        places = self.order.new_empty(len(self.order), self.length + 1)
        return places.scatter_(1, self.order, ranks.expand_as(self.order))[:, :-1]

    def of_heads(self, i: int, j: int) -> Clusters:
        """Returns the clusters of the heads from i on, up to but without j."""
        return Clusters(self.order[i:j], self.sizes)

    def short(self) -> list[int]:
        """Returns which clusters have only S - 1 tokens."""
        return [c for c, size in enumerate(self.sizes) if size < self.size]

    def divisor(self, like: Tensor) -> Tensor:
        """Returns `sizes` as a tensor, [C, 1], with the dtype and on the device of `like`."""
        return torch.tensor(self.sizes, dtype=like.dtype, device=like.device)[:, None]


def bisected(x: Tensor, count: int) -> Clusters:
    """Cuts tokens into at most `count` clusters, a power of two; sizes differ by at most one.

    All tokens are cut in two at the median of their projections on a direction, then each half is,
    and so on. The direction of a part is the leading one of those of its tokens that are in a
    sample, found by power steps on their covariance. Cost: one product of L x C x D, and log2(C)
    selections among L numbers a head. Nothing is random.

    Args:
        x: Tokens, [H, L, D], L at least 1; no gradient flows.
        count: At least 1.
    """
    x = x.detach()
    heads, length, _ = x.shape
    sizes = cluster_sizes(length, count)
    slots = len(sizes) * max(sizes)
    order = torch.arange(slots, device=x.device).clamp(max=length).expand(heads, slots)
    for direction in _directions(x, len(sizes).bit_length() - 1):  # [H, parts, D]
        parts = order.reshape(heads, direction.shape[1], -1)
        projections = (direction @ x.mT).nan_to_num().gather(2, parts.clamp(max=length - 1))
        if slots > length:  # half of the places without a token go to either side
            hole = parts == length
            odd = hole.cumsum(2) % 2 == 1
            projections.masked_fill_(hole & odd, torch.inf).masked_fill_(hole & ~odd, -torch.inf)
        order = parts.gather(2, _halves(projections)).reshape(heads, slots)
    clusters = Clusters(order, sizes)
    return clusters if slots == length else _holes_last(clusters)


def clusters_of(places: Tensor, count: int) -> Clusters:
    """Returns the clusters of which `places`, [H, L], and the count are known."""
    heads, length = places.shape
    sizes = cluster_sizes(length, count)
    order = places.new_full((heads, len(sizes) * max(sizes)), length)
    tokens = torch.arange(length, device=places.device).expand_as(places)
    return Clusters(order.scatter_(1, places, tokens), sizes)


def cluster_sizes(length: int, count: int) -> tuple[int, ...]:
    """Returns how many tokens each cluster has; of two halves the first is never the smaller."""
    levels = min(length, count).bit_length() - 1
    sizes, slots = [length], -(-length >> levels) << levels
    for _ in range(levels):
        slots //= 2
        left = [slots - (2 * slots - size) // 2 for size in sizes]
        sizes = [n for size, half in zip(sizes, left, strict=True) for n in (half, size - half)]
    return tuple(sizes)


def _holes_last(clusters: Clusters) -> Clusters:
    """Moves the place without a token to the end of each cluster that has one."""
    order, length = clusters.order.unflatten(1, (clusters.count, -1)), clusters.length
    order = torch.where(order == length, order[..., -1:], order)
    order[:, clusters.short(), -1] = length
    return Clusters(order.flatten(1), clusters.sizes)


def _directions(x: Tensor, levels: int) -> list[Tensor]:
    """Returns for every level the directions of its parts, [H, 2^level, D]."""
    heads, length, dim = x.shape
    sampled = min(length, max(SAMPLE, 1 << levels)) >> levels << levels
    sample = x[:, torch.arange(sampled, device=x.device) * length // sampled]
    directions = []
    for level in range(levels):
        parts = sample.reshape(heads, 1 << level, -1, dim)
        parts = parts - parts.mean(2, keepdim=True)
        direction = _leading(parts)
        directions.append(direction[:, :, 0])
        order = _halves((parts @ direction.mT)[..., 0].nan_to_num())  # [H, parts, tokens]
        sample = sample.reshape(parts.shape).gather(2, order[..., None].expand(parts.shape))
    return directions


def _leading(x: Tensor) -> Tensor:
    """Returns nearly the leading right singular vector of each [..., S, D], as [..., 1, D].

    It has length one (or zero), and its sum is not negative.
    """
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=1e-30)  # or its fourth power overflows
    square = x.mT @ x
    largest = square.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    direction = square.gather(-2, largest.expand(*x.shape[:-2], 1, x.shape[-1]))
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize(direction @ square, dim=-1, eps=1e-30)
    return torch.where(direction.sum(-1, keepdim=True) < 0, -direction, direction)


def _halves(x: Tensor) -> Tensor:
    """Returns the indices of the smaller half of x along its last dimension, then of the others.

    Within a half, and among equals at its border, they keep their order. A sort does the same in
    twice the time. No x may be NaN, which is in neither half.
    """
    half = x.shape[-1] // 2
    border = x.kthvalue(half, keepdim=True).values
    small, equal = x < border, x == border
    small |= equal & (equal.cumsum(-1) <= half - small.sum(-1, keepdim=True))
    rank, index = small.cumsum(-1), torch.arange(x.shape[-1], device=x.device)
    place = torch.where(small, rank - 1, rank[..., -1:] + index - rank)
    return torch.empty_like(place).scatter_(-1, place, index.expand_as(place))
