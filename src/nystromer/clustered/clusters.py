"""Balanced clusters of the tokens of one sequence, by recursive bisection.

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
    """Tokens in the order of their clusters.

    order: int64 [H, C S]: cluster c holds order[:, c S : (c + 1) S], of which the last is no token
    but L where the cluster is one short of S tokens.
    sizes: Tokens of each cluster, S or S - 1: the same for all heads.
    """

    order: Tensor
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """C"""
        return len(self.sizes)

    @property
    def size(self) -> int:
        """S"""
        return max(self.sizes)

    @property
    def length(self) -> int:
        """L"""
        return sum(self.sizes)

    @property
    def places(self) -> Tensor:
        """Where in the order a token stands, [H, L]."""
        ranks = torch.arange(self.order.shape[1], device=self.order.device)
        places = self.order.new_empty(len(self.order), self.length + 1)
        return places.scatter_(1, self.order, ranks.expand_as(self.order))[:, :-1]

    def of_heads(self, i: int, j: int) -> Clusters:
        return Clusters(self.order[i:j], self.sizes)

    def short(self) -> list[int]:
        """The clusters one short of S tokens."""
        return [c for c, size in enumerate(self.sizes) if size < self.size]

    def divisor(self, like: Tensor) -> Tensor:
        """`sizes` as [C, 1], dtype and device of `like`."""
        return torch.tensor(self.sizes, dtype=like.dtype, device=like.device)[:, None]


def bisected(x: Tensor, count: int) -> Clusters:
    """At most `count` clusters, a power of two, of as many tokens each or one fewer.

    All tokens are cut in two at the median of their projections on a direction, then each half is,
    and so on. A direction is the leading one of its part of a sample, found by power steps on the
    covariance of its tokens. Cost: one product of L x C x D, and
    log2(C) selections among L numbers a head. Nothing is random.

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
    """From `Clusters.places`, [H, L]."""
    heads, length = places.shape
    sizes = cluster_sizes(length, count)
    order = places.new_full((heads, len(sizes) * max(sizes)), length)
    tokens = torch.arange(length, device=places.device).expand_as(places)
    return Clusters(order.scatter_(1, places, tokens), sizes)


def cluster_sizes(length: int, count: int) -> tuple[int, ...]:
    """Tokens of each cluster: halves of halves of L, where a left one is never the smaller."""
    levels = min(length, count).bit_length() - 1
    sizes, slots = [length], -(-length >> levels) << levels
    for _ in range(levels):
        slots //= 2
        left = [slots - (2 * slots - size) // 2 for size in sizes]
        sizes = [n for size, half in zip(sizes, left, strict=True) for n in (half, size - half)]
    return tuple(sizes)


def _holes_last(clusters: Clusters) -> Clusters:
    """Changes places within the clusters that are one short."""
    order, length = clusters.order.unflatten(1, (clusters.count, -1)), clusters.length
    order = torch.where(order == length, order[..., -1:], order)
    order[:, clusters.short(), -1] = length
    return Clusters(order.flatten(1), clusters.sizes)


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
        order = _halves((parts @ direction.mT)[..., 0].nan_to_num())  # [H, parts, tokens]
        sample = sample.reshape(parts.shape).gather(2, order[..., None].expand(parts.shape))
    return directions


def _leading(x: Tensor) -> Tensor:
    """The leading right singular vector of each [..., S, D], nearly, of length one (or zero) and
    with a sum that is not negative: [..., 1, D]."""
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=1e-30)  # or its fourth power overflows
    square = x.mT @ x
    largest = square.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    direction = square.gather(-2, largest.expand(*x.shape[:-2], 1, x.shape[-1]))
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize(direction @ square, dim=-1, eps=1e-30)
    return torch.where(direction.sum(-1, keepdim=True) < 0, -direction, direction)


def _halves(x: Tensor) -> Tensor:
    """Indices of the smaller half of x along its last dimension, then of the others.

    Within a half, and among equals at its border, they keep their order. A sort does the same in
    twice the time. No x may be NaN: what is not compared would be lost.
    """
    half = x.shape[-1] // 2
    border = x.kthvalue(half, keepdim=True).values
    small, equal = x < border, x == border
    small |= equal & (equal.cumsum(-1) <= half - small.sum(-1, keepdim=True))
    rank, index = small.cumsum(-1), torch.arange(x.shape[-1], device=x.device)
    place = torch.where(small, rank - 1, rank[..., -1:] + index - rank)
    return torch.empty_like(place).scatter_(-1, place, index.expand_as(place))
