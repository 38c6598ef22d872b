"""Two attentions by others that need no training either, in time linear in the length.

Both take sequences without padding. Shapes: B, H, N, D as everywhere; G query clusters, M key
clusters or landmarks, S tokens of a key cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer import nystrom_attention
from nystromer.clustered.clusters import Clusters, bisected


def fast_nystrom(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, m: int
) -> Tensor:
    """Takes tokens as landmarks, the same of queries and keys and for all heads.

    The first is the first token of the sequence; each further one is the token whose keys are
    farthest from all that were taken.

    Source: Fast Nyström Attention, Lu et al. 2025, arXiv:2507.16018, here with the landmarks drawn
    anew in every layer.
    """
    chosen = farthest(k.transpose(1, 2).flatten(2), m)[:, None, :, None]  # [B, 1, M, 1]
    landmarks = (
        q.gather(2, chosen.expand(-1, q.shape[1], -1, q.shape[3])),
        k.gather(2, chosen.expand(-1, k.shape[1], -1, k.shape[3])),
    )
    return nystrom_attention(q, k, v, num_landmarks=m, landmarks=landmarks, scale=scale)


def farthest(x: Tensor, count: int) -> Tensor:
    """Returns `count` tokens of x [B, N, D], each the farthest from those before: int64 [B, M]."""
    chosen = [torch.zeros(len(x), dtype=torch.long, device=x.device)]
    distance = torch.full(x.shape[:2], torch.inf, dtype=x.dtype, device=x.device)
    while len(chosen) < count:
        last = x[torch.arange(len(x)), chosen[-1]]
        distance = torch.minimum(distance, (x - last[:, None]).square().sum(-1))
        chosen.append(distance.argmax(-1))
    return torch.stack(chosen, 1)


def muse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    groups: int,
    slots: int,
    exact_keys: int = 0,
) -> Tensor:
    """Gives every query cluster its own summary of every key cluster, tilted by exp(q~ k_i).

    For a query q with the cluster mean q~, a summary weighs sum_i exp(q~ k_i) exp((q - q~) k'),
    where k' is the mean of its keys with the weights exp(q~ k_i); the values have the same mean.
    The key clusters that weigh most for q~ are read key by key instead: as many as hold
    `exact_keys`, and at least one unless that is 0.

    Source: MuSe, Mitchell & Kersting 2025, arXiv:2509.10406; key by key as its later versions do,
    by their abstracts. Its clusters are ours here.

    Raises:
        ValueError: If the clusters of queries or of keys differ in size.
    """
    shape = q.shape
    q, k, v = ((x * s).flatten(0, 1) for x, s in ((q, scale), (k, 1), (v, 1)))
    queries, keys = bisected(q, groups), bisected(k, slots)
    qs, ks, vs = clustered(q, queries), clustered(k, keys), clustered(v, keys)
    centres = qs.mean(2, keepdim=True)  # [H, G, 1, D]
    scores = torch.einsum("hgd,hmsd->hgms", centres[:, :, 0], ks)
    mass, within = scores.logsumexp(-1), scores.softmax(-1)
    tilted_k, values = (torch.einsum("hgms,hmsd->hgmd", within, x) for x in (ks, vs))
    logits = (qs - centres) @ tilted_k.mT + mass[:, :, None]  # [H, G, N / G, M]
    if exact_keys:
        best = mass.topk(max(1, exact_keys // keys.size)).indices  # [H, G, T / S]
        logits = logits.scatter(3, best[:, :, None].expand(-1, -1, qs.shape[2], -1), -torch.inf)
        head = torch.arange(len(q))[:, None, None]
        near_k, near_v = (x[head, best].flatten(2, 3) for x in (ks, vs))  # [H, G, T, D]
        logits, values = torch.cat([logits, qs @ near_k.mT], 3), torch.cat([values, near_v], 2)
    output = (logits.softmax(-1) @ values).flatten(1, 2)
    return output.gather(1, queries.places[..., None].expand_as(output)).view(shape)


def clustered(x: Tensor, found: Clusters) -> Tensor:
    """Returns the tokens [H, N, D] by cluster: [H, C, S, D]."""
    if found.short():
        raise ValueError(f"Clusters must be of one size, got {found.length} in {found.count}.")
    order = found.order[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, order).unflatten(1, (found.count, found.size))
