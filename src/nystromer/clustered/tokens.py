"""Puts tokens in the order of their clusters and back.

Shapes: H heads, L tokens, D features; C clusters of S places, of which the last may be empty.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nystromer.clustered.clusters import Clusters


def sort(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns tokens in the order of their clusters, zero where there is none: [H, C S, D]."""
    return rows(F.pad(x, (0, 0, 0, 1)), clusters.order)


def unsort(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns tokens back in their own order: [H, C S, D] -> [H, L, D]."""
    return rows(x, clusters.places)


def split(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns sorted tokens by cluster: [H, C S, D] -> [H, C, S, D]."""
    return x.unflatten(1, (clusters.count, clusters.size))


def means(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns the mean of each cluster of sorted tokens: [H, C S, D] -> [H, C, D]."""
    return split(x, clusters).sum(2) / clusters.divisor(x)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns x[h, index[h]] for every head h: [H, L, D] and int64 [H, ...] -> [H, ..., D]."""
    flat = index.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).unflatten(1, index.shape[1:])
