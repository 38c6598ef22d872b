"""Attentions with clusters by others, as attention maps in plain PyTorch.

They take one sequence without padding, and say what a method computes, not what it costs: all hold
L x L numbers. Shapes: H heads, L tokens, D features, G query clusters, M key clusters, T exact
keys. Queries are already times the softmax scale. Every function returns the weights of all keys
for every query, [H, L, L].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nystromer.clustered.clusters import bisected
from nystromer.landmarks import kmeans


class Parts(NamedTuple):
    """The cluster of every token, int64 [H, L], and the means of the clusters, [H, C, D]."""

    ids: Tensor
    means: Tensor

    @property
    def near(self) -> Tensor:
        """Returns the mean of every token's cluster, [H, L, D]."""
        return rows(self.means, self.ids)


def balanced(x: Tensor, count: int) -> Parts:
    """Cuts tokens as `clustered_attention` does: at most count clusters, a power of two."""
    found = bisected(x, count)
    return parts_of(x, found.places // found.size, found.count)


def lloyd(x: Tensor, count: int) -> Parts:
    """Cuts tokens by ten steps of k-means."""
    centres = kmeans(x[None], count)[0][0]
    return parts_of(x, torch.cdist(x, centres).argmin(-1), count)


def parts_of(x: Tensor, ids: Tensor, count: int) -> Parts:
    """Returns the parts of tokens whose clusters are known."""
    one_hot = torch.nn.functional.one_hot(ids, count).to(x.dtype)  # [H, L, C]
    return Parts(ids, one_hot.mT @ x / one_hot.sum(1).clamp(min=1)[..., None])


Cut = Callable[[Tensor, int], Parts]


def clustered(
    q: Tensor, k: Tensor, groups: int, slots: int, exact_keys: int, cut: Cut = balanced
) -> Tensor:
    """Scores q~ k_i + q k~ - q~ k~, but q k_i for T of the keys, as `clustered_attention` does."""
    queries, keys = cut(q, groups), cut(k, slots)
    far = queries.near @ k.mT + q @ keys.near.mT - queries.near @ keys.near.mT
    return torch.where(top(queries, k, exact_keys), q @ k.mT, far).softmax(-1)


def improved_clustered(
    q: Tensor, k: Tensor, groups: int, exact_keys: int, cut: Cut = lloyd
) -> Tensor:
    """Gives each query the row of its cluster, softmax(q~ kᵀ), whose T first keys are shared anew.

    What those T keys weigh together is shared among them by the query's own logits.

    Source: Vyas et al. 2020, arXiv:2007.04825 (which clusters hashes of the queries; here k-means).
    """
    queries = cut(q, groups)
    shared, chosen = (queries.near @ k.mT).softmax(-1), top(queries, k, exact_keys)
    own = (q @ k.mT).masked_fill(~chosen, -torch.inf).softmax(-1)
    mass = (shared * chosen).sum(-1, keepdim=True)
    return torch.where(chosen, mass * own, shared)


def multipole(q: Tensor, k: Tensor, groups: int, slots: int, dipole: bool = False) -> Tensor:
    """Tilts key clusters by q~: the mean k' of a cluster has the weights exp(q~ k_i).

    For q, a key weighs exp(q~ k_i + (q - q~) k'); with the dipole, it does to first order in the
    cluster.

    Source: MuSe, Mitchell & Kersting 2025, arXiv:2509.10406, as its abstract and figure say it;
    without the hierarchy that it has for causal attention. Its clusters are ours here.
    """
    queries, keys = balanced(q, groups), balanced(k, slots)
    scores = queries.means @ k.mT  # [H, G, L]
    member = torch.nn.functional.one_hot(keys.ids, keys.means.shape[1]).mT  # [H, M, L]
    within = scores[:, :, None].masked_fill(member[:, None] == 0, -torch.inf).softmax(-1)
    tilted = within @ k[:, None]  # [H, G, M, D]
    off = q - queries.near
    shift = torch.einsum("hld,hlmd->hlm", off, rows(tilted, queries.ids))  # (q - q~) k'
    shift = shift.gather(2, keys.ids[:, None].expand(-1, q.shape[1], -1))  # [H, L, L]
    weights = (queries.near @ k.mT + shift).softmax(-1)
    return weights * (1 + off @ k.mT - shift) if dipole else weights


def blocks(q: Tensor, k: Tensor, groups: int, slots: int, exact_keys: int) -> Tensor:
    """Takes whole key clusters exactly, about T keys of them, and all others by their mean.

    Source: ClusterAttention, Nordenram & Dittmann 2026, with its metrics: keys are as different as
    the queries see them, and queries as the keys do.
    """
    length = q.shape[1]
    centred = k - k.mean(1, keepdim=True)
    seen = torch.nn.functional.normalize(q @ root(centred.mT @ centred), dim=-1)
    queries = parts_of(q, balanced(seen, groups).ids, groups)
    keys = parts_of(k, balanced(k @ root(q.mT @ q), slots).ids, slots)
    scores = queries.means @ keys.means.mT
    best = scores.topk(max(1, round(exact_keys * slots / length))).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, True)
    chosen = rows(chosen, queries.ids).gather(2, keys.ids[:, None].expand(-1, length, -1))
    return torch.where(chosen, q @ k.mT, q @ keys.near.mT).softmax(-1)


def top(queries: Parts, k: Tensor, count: int) -> Tensor:
    """Returns whether a key is among the T that score highest for the mean of a query's cluster."""
    scores = queries.means @ k.mT
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return rows(chosen.scatter(2, scores.topk(count).indices, True), queries.ids)


def root(x: Tensor) -> Tensor:
    """Returns the square root of a positive matrix."""
    values, vectors = torch.linalg.eigh(x)
    return vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT


def rows(x: Tensor, ids: Tensor) -> Tensor:
    """Returns x[h, ids[h]] for every head h: [H, C, ...] and [H, L] -> [H, L, ...]."""
    return x[torch.arange(len(x))[:, None], ids]
