"""Clustered attention as one graph for every mask and length, for runtimes that read graphs.

The equations are those of `eager`. Nothing is decided on a tensor's values: a cluster has as many
places as the longest sequence needs, and the last of them are empty where a sequence is shorter.

Shapes: B sequences, H heads, N tokens, L of them real, D features; G query clusters of P places, M
key clusters of C places, T exact keys; S = G P or M C places. Queries q are already times the
softmax scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.clustered.budget import Budget
from nystromer.clustered.clusters import SAMPLE
from nystromer.exact_attention import packed_exact
from nystromer.landmarks import zero_padding
from nystromer.precision import accumulation_dtype
from nystromer.registration import is_traced

SQUARINGS = 4  # of a covariance: as many power steps as POWER_STEPS, 2^4


class Clusters(NamedTuple):
    """Which token stands at which place.

    order: The token of each place, int64 [B, H, C, S]; any where there is none.
    filled: Whether there is one, bool [B, 1, C, S]; a cluster's empty places are its last.
    """

    order: Tensor
    filled: Tensor


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, budget: Budget, mask: Tensor | None, scale: float
) -> Tensor:
    if not is_traced() and not value.numel():
        return torch.zeros_like(value)
    if mask is None:
        mask = query.new_ones(query.shape[0], query.shape[2], dtype=torch.bool)
    dtype = accumulation_dtype(query.dtype)
    q, k, v = (zero_padding(x, mask).to(dtype) for x in (query, key, value))
    long = mask.sum(1, keepdim=True) > budget.keys  # [B, 1]
    output = attend(scale * q, k, v, mask, budget)
    short = packed_exact(budget.keys, q, k, v, mask & ~long, scale)
    return (zero_padding(output, mask & long) + short).to(value.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, budget: Budget) -> Tensor:
    """Returns the output, [B, H, N, Dv], of sequences with more tokens than exact keys."""
    queries = bisected(q, mask, budget.query_clusters, 0)
    keys = bisected(k, mask, budget.key_clusters, budget.exact_keys)
    places = places_of(queries, q.shape[2])
    q, k, v = sort(q, queries), sort(k, keys), sort(v, keys)  # [B, H, G, P, D], [B, H, M, C, D]
    q_tilde, k_tilde = means(q, queries), means(k, keys)
    k, k_by_slot, v_by_slot = k.flatten(2, 3), keys.filled.flatten(2), v
    v = v.flatten(2, 3)
    scores = (q_tilde @ k.mT).masked_fill(~k_by_slot[:, :, None], -torch.inf)  # R, [B, H, G, M C]
    highest, exact = scores.topk(budget.exact_keys, sorted=False)  # [B, H, G, T]
    scores = scores.scatter(-1, exact, -torch.inf).unflatten(-1, keys.filled.shape[2:])
    limits = torch.finfo(scores.dtype)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=limits.min)  # a slot may be empty
    weights = (scores - top).exp()
    mass = weights.sum(-1, keepdim=True).clamp(min=limits.tiny)
    bias = (top + mass.log()).squeeze(-1) - q_tilde @ k_tilde.mT  # [B, H, G, M]
    v_tilde = ((weights / mass).transpose(2, 3) @ v_by_slot).transpose(2, 3)  # [B, H, G, M, D]
    near = q @ rows(k, exact).mT  # [B, H, G, P, T]
    near = near.masked_fill((highest == -torch.inf)[:, :, :, None], limits.min)
    far = q @ k_tilde[:, :, None].mT + bias[:, :, :, None]  # [B, H, G, P, M]
    probabilities = torch.softmax(torch.cat([near, far], -1), -1)
    output = probabilities @ torch.cat([rows(v, exact), v_tilde], 3)
    return rows(output.flatten(2, 3), places)


def bisected(x: Tensor, mask: Tensor, count: int, spare: int) -> Clusters:
    """Cuts the real tokens of each sequence into clusters, by halves of halves.

    Args:
        x: Tokens, [B, H, N, D].
        mask: Real tokens, bool [B, N].
        count: C, rounded down to a power of two.
        spare: Places that are always left empty.
    """
    x = x.detach()
    levels = count.bit_length() - 1
    heads, n = x.shape[1:3]
    clusters = 1 << levels
    size = (n + spare) // clusters + 2  # enough; never 1, a size that torch would tell apart
    order = real_first(mask, clusters * size)  # [B, S]
    length = mask.sum(1, keepdim=True)
    sizes = length  # of each part, [B, parts]
    directions = _directions(x, order, length, levels)
    order = order[:, None].expand(-1, heads, -1)
    for level, direction in enumerate(directions):  # [B, H, parts, D]
        by_part = order.unflatten(2, (1 << level, (clusters >> level) * size))
        projections = (direction @ x.mT).nan_to_num().gather(3, by_part)
        order, sizes = _halves(projections, by_part, sizes)
    return Clusters(order.unflatten(2, (clusters, size)), _filled(sizes, size))


def real_first(mask: Tensor, places: int) -> Tensor:
    """Returns the real tokens of each sequence in their order, int64 [B, S], then zeros."""
    rank = (mask.cumsum(1) - 1).masked_fill(~mask, places)  # the last place takes the padding
    tokens = torch.arange(mask.shape[1], device=mask.device).expand_as(rank)
    order = rank.new_zeros(mask.shape[0], places + 1)
    return order.scatter(1, rank, tokens)[:, :places]


def places_of(clusters: Clusters, n: int) -> Tensor:
    """Returns at which place each token stands, [B, H, N]; padding at any."""
    order = clusters.order.masked_fill(~clusters.filled, n).flatten(2)
    ranks = torch.arange(order.shape[2], device=order.device).expand_as(order)
    return order.new_zeros(*order.shape[:2], n + 1).scatter(2, order, ranks)[:, :, :n]


def sort(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns tokens by cluster, zero where there is none: [B, H, N, D] -> [B, H, C, S, D]."""
    return rows(x, clusters.order).masked_fill(~clusters.filled[..., None], 0.0)


def means(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns the mean of each cluster's tokens: [B, H, C, S, D] -> [B, H, C, D]."""
    return x.sum(3) / clusters.filled.sum(3).clamp(min=1)[..., None]


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns x[b, h, index[b, h]]: [B, H, N, D] and int64 [B, H, ...] -> [B, H, ..., D]."""
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, flat).unflatten(2, index.shape[2:])


def _directions(x: Tensor, order: Tensor, length: Tensor, levels: int) -> list[Tensor]:
    """Returns for every level the directions of its parts, [B, H, 2^level, D]."""
    most = max(SAMPLE, 1 << levels) >> levels << levels
    sampled = length.clamp(max=most) // (1 << levels) * (1 << levels)  # [B, 1]
    step = torch.arange(most, device=x.device) * length // sampled.clamp(min=1)
    tokens = order.gather(1, torch.minimum(step, (length - 1).clamp(min=0)))  # [B, most]
    tokens = tokens[:, None].expand(-1, x.shape[1], -1)
    sizes, directions = sampled, []
    for level in range(levels):
        parts = tokens.unflatten(2, (1 << level, most >> level))
        filled = _filled(sizes, parts.shape[3])
        sample = sort(x, Clusters(parts, filled))
        centred = sample - means(sample, Clusters(parts, filled))[:, :, :, None]
        direction = _leading(centred.masked_fill(~filled[..., None], 0.0))
        directions.append(direction[:, :, :, 0])
        projections = (sample @ direction.mT)[..., 0].nan_to_num()
        tokens, sizes = _halves(projections, parts, sizes)
    return directions


def _leading(x: Tensor) -> Tensor:
    """Returns nearly the leading right singular vector of each [..., S, D], as [..., 1, D].

    As `clusters._leading` does, with all power steps as one power of the covariance.
    """
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=1e-30)
    square = x.mT @ x
    trace = square.diagonal(dim1=-2, dim2=-1)
    power = square / trace.sum(-1)[..., None, None].clamp(min=1e-30)
    largest = trace.argmax(-1)[..., None, None]
    start = square.gather(-2, largest.expand(*x.shape[:-2], 1, x.shape[-1]))
    for _ in range(SQUARINGS):
        power = power @ power
    direction = F.normalize(F.normalize(start, dim=-1, eps=1e-30) @ power, dim=-1, eps=1e-30)
    return torch.where(direction.sum(-1, keepdim=True) < 0, -direction, direction)


def _halves(x: Tensor, parts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts each part in two at the median of its tokens' projections.

    x, parts: Projections and tokens, [B, H, parts, S]; sizes: [B, parts]. Returns the tokens of
    the halves, [B, H, parts S], and their sizes, [B, 2 parts]; the first half is never the smaller.
    """
    places = x.shape[3]
    index = x.masked_fill(~_filled(sizes, places), torch.inf).argsort(-1)
    tokens = parts.gather(3, index)
    left, right = (sizes + 1) // 2, sizes // 2
    second = left[..., None] + torch.arange(places // 2, device=x.device)  # [B, parts, S / 2]
    second = second.clamp(max=places - 1)[:, None].expand(-1, x.shape[1], -1, -1)
    halves = torch.stack([tokens[..., : places // 2], tokens.gather(3, second)], 3)
    return halves.flatten(2), torch.stack([left, right], 2).flatten(1)


def _filled(sizes: Tensor, places: int) -> Tensor:
    """Returns which places hold a token, bool [B, 1, parts, S], from the sizes, [B, parts]."""
    return (torch.arange(places, device=sizes.device) < sizes[..., None])[:, None]
