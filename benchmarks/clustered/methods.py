"""The attentions that are compared at the same number of keys a query, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.clustered import rivals
from nystromer import clustered_attention, nystrom_attention
from nystromer.landmarks import kmeans

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]
BUDGETS = {  # keys a query scores: G query clusters, M key clusters, T exact keys
    64: (32, 8, 24),
    128: (64, 16, 48),
    192: (64, 32, 96),
    256: (128, 32, 96),
}


def clustered(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, budget: tuple[int, ...]
) -> Tensor:
    names = ("num_query_clusters", "num_key_clusters", "num_exact_keys")
    counts = dict(zip(names, budget, strict=True))
    return clustered_attention(q, k, v, **counts, mask=mask, scale=scale)


def nystrom(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, m: int
) -> Tensor:
    return nystrom_attention(q, k, v, num_landmarks=m, mask=mask, scale=scale)


def nystrom_kmeans(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, m: int
) -> Tensor:
    """Takes landmarks from k-means over each token's query and key joined.

    The inverse has a ridge, near the best one, instead of six steps.
    """
    centres, _ = kmeans(torch.cat([q, k], -1), m, mask)
    landmarks = (centres[..., : q.shape[3]], centres[..., q.shape[3] :])
    options: dict[str, Any] = {"num_landmarks": m, "landmarks": landmarks, "pinv_ridge": 1e-2}
    return nystrom_attention(q, k, v, mask=mask, scale=scale, **options)


def mapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    make: Callable[..., Tensor],
    **counts: Any,
) -> Tensor:
    """Computes a map of `rivals` for every sequence, one head at a time."""
    output = torch.zeros_like(v)
    for b in range(len(q)):
        real = slice(None) if mask is None else mask[b]
        for h in range(q.shape[1]):
            weights = make(scale * q[b, h : h + 1, real], k[b, h : h + 1, real], **counts)
            output[b, h, real] = weights[0] @ v[b, h, real]
    return output


def methods(keys: int) -> dict[str, Attention]:
    """Returns all methods at that number of keys a query.

    A key that a query scores, with the value that it reads, counts as one; so does a product of
    that size that a cluster needs, shared among its queries. The clustering of each, and Nyström's
    inverse, do not count.
    """
    groups = BUDGETS[keys][0]
    counts = {"groups": groups, "exact_keys": keys - groups}
    tilted = {"groups": keys // 2, "slots": keys // 4}  # G / 2 more, to average the keys as well
    return {
        "Nyström": partial(nystrom, m=keys // 2),
        "Nyström, k-means, ridge": partial(nystrom_kmeans, m=keys // 2),
        "MuSe": partial(mapped, make=rivals.multipole, **tilted),
        "MuSe, dipole": partial(mapped, make=rivals.multipole, **tilted, dipole=True),
        "ClusterAttention": partial(
            mapped, make=rivals.blocks, groups=keys // 2, slots=keys // 2, exact_keys=keys // 2
        ),
        "improved clustered": partial(mapped, make=rivals.improved_clustered, **counts),
        "improved clustered, our clusters": partial(
            mapped, make=rivals.improved_clustered, **counts, cut=rivals.balanced
        ),
        "ours, k-means clusters": partial(
            mapped,
            make=rivals.clustered,
            **dict(zip(("groups", "slots", "exact_keys"), BUDGETS[keys], strict=True)),
            cut=rivals.lloyd,
        ),
        "ours": partial(clustered, budget=BUDGETS[keys]),
    }
