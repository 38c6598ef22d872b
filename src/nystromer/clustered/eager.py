"""The backend of clustered attention to read: its equations as written, a sequence at a time.

Shapes: H heads, L real tokens, D features; G query clusters of P tokens, M key clusters of C
tokens, T exact keys. Queries q are already times the softmax scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nystromer.clustered.budget import Budget
from nystromer.clustered.clusters import Clusters, bisected
from nystromer.clustered.tokens import means, rows, sort, split, unsort
from nystromer.precision import accumulation_dtype


class Slots(NamedTuple):
    """What the queries of each query cluster look at: T keys, and a slot for every key cluster.

    queries, keys: The clusters.
    exact: The T keys, as places in the order of `keys`, [H, G, T].
    weights: What every other key weighs in its slot, [H, G, M, C]; 0 for the T.
    bias: What is added to q · k~ in the logit of a slot, [H, G, M].
    k_tilde: The mean key of every key cluster, [H, M, D].
    """

    queries: Clusters
    keys: Clusters
    exact: Tensor
    weights: Tensor
    bias: Tensor
    k_tilde: Tensor


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, budget: Budget, mask: Tensor | None, scale: float
) -> Tensor:
    dtype = accumulation_dtype(query.dtype)
    output = []
    for b in range(query.shape[0]):
        real = torch.arange(query.shape[2], device=query.device)
        real = real if mask is None else real[mask[b]]
        q, k, v = (x[b, :, real].to(dtype) for x in (query, key, value))
        tokens = attend(scale * q, k, v, budget).to(value.dtype)
        output.append(torch.zeros_like(value[b]).index_copy(1, real, tokens))
    return torch.stack(output) if output else torch.zeros_like(value)


def attend(q: Tensor, k: Tensor, v: Tensor, budget: Budget) -> Tensor:
    """Returns the output, [H, L, Dv], of one sequence without padding."""
    if q.shape[1] <= budget.keys:
        return torch.softmax(q @ k.mT, -1) @ v
    slots = make_slots(q, k, budget)
    q, k, v = sort(q, slots.queries), sort(k, slots.keys), sort(v, slots.keys)
    v_tilde = (slots.weights.transpose(1, 2) @ split(v, slots.keys)).transpose(1, 2)  # [H, G, M, D]
    q = split(q, slots.queries)  # [H, G, P, D]
    near = q @ rows(k, slots.exact).mT  # [H, G, P, T]
    far = q @ slots.k_tilde[:, None].mT + slots.bias[:, :, None]  # [H, G, P, M]
    probabilities = torch.softmax(torch.cat([near, far], -1), -1)
    output = probabilities @ torch.cat([rows(v, slots.exact), v_tilde], 2)
    return unsort(output.flatten(1, 2), slots.queries)


def make_slots(q: Tensor, k: Tensor, budget: Budget) -> Slots:
    """Clusters the queries and the keys of one sequence, and joins them.

    With R = q~ · k_i, Nyström's third table, a slot stands for its keys as the mean query q~ sees
    them: q · k_i ~ q · k~ + (R - q~ · k~), exact where q = q~ or k_i = k~.
    """
    queries, keys = bisected(q, budget.query_clusters), bisected(k, budget.key_clusters)
    k = sort(k, keys)
    q_tilde, k_tilde = means(sort(q, queries), queries), means(k, keys)
    scores = q_tilde @ k.mT  # R, [H, G, M C]
    scores = scores.masked_fill((keys.order == keys.length)[:, None], -torch.inf)
    exact = scores.topk(budget.exact_keys, sorted=False).indices
    scores = scores.scatter(-1, exact, -torch.inf).unflatten(-1, (keys.count, keys.size))
    limits = torch.finfo(scores.dtype)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=limits.min)  # a slot may be empty
    weights = (scores - top).exp()
    mass = weights.sum(-1, keepdim=True).clamp(min=limits.tiny)
    bias = (top + mass.log()).squeeze(-1) - q_tilde @ k_tilde.mT
    return Slots(queries, keys, exact, weights / mass, bias, k_tilde)
