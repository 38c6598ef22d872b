"""Computes the attention that a `LayerChoice` stands for, from queries, keys and values.

Shapes: query [B, H, N, D], key [B, H, N, D], value [B, H, N, Dv]; mask bool [B, N].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.import_utils import is_tracing

from nystromer.clustered.attention import clustered_attention
from nystromer.functional import nystrom_attention
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.landmarks import kmeans

KMEANS_STEPS = 3  # ten cost three times as much and are no better (docs/log.md)


def attend(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None = None,
) -> Tensor:
    """Computes the layer's attention, [B, H, N, Dv]: the choice's for sequences of at least
    `choice.exact_below` real tokens, exact attention for the others and in `choice.exact_heads`.

    The rule is per sequence: batching changes nothing. Rows of padding are zero.
    """
    if not choice.exact_heads:
        return _attend(choice, query, key, value, mask, scaling, conv_weight)
    exact = list(choice.exact_heads)
    others = [h for h in range(query.shape[1]) if h not in exact]
    q, k, v = (x[:, exact] for x in (query, key, value))
    parts = [_exact(q, k, v, mask, scaling)]
    if others:
        q, k, v = (x[:, others] for x in (query, key, value))
        taps = None if conv_weight is None else conv_weight[others]
        parts.append(_attend(choice, q, k, v, mask, scaling, taps))
    order = [(exact + others).index(head) for head in range(query.shape[1])]
    return torch.cat(parts, 1)[:, order]


def _attend(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None,
) -> Tensor:
    """Computes `attend` for heads of which none is exact.

    Each of two calls sees its own sequences alone, those of the other as padding, for which it
    takes no time. For exact attention, Lemma 2, as many landmarks are asked for as a short sequence
    may have tokens. A graph that is being traced holds both calls; otherwise one is left out if it
    has no sequences.
    """
    n, shortest = query.shape[2], choice.exact_below
    known = not isinstance(n, torch.SymInt)  # else a graph for any length is being traced
    if known and n < shortest:
        return _exact(query, key, value, mask, scaling)
    if shortest == 1 or (known and mask is None):
        return approximate(choice, query, key, value, mask, scaling, conv_weight)
    if mask is None:
        mask = torch.ones(query.shape[0], n, dtype=torch.bool, device=query.device)
    long = mask.sum(1, keepdim=True) >= shortest
    if not is_tracing(long):
        if long.all():
            return approximate(choice, query, key, value, mask, scaling, conv_weight)
        if not long.any():
            return _exact(query, key, value, mask, scaling)
    near = approximate(choice, query, key, value, mask & long, scaling, conv_weight)
    return near + nystrom_attention(
        query, key, value, num_landmarks=shortest - 1, mask=mask & ~long, scale=scaling
    )


def _exact(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Computes softmax attention, zero in rows of padding."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)
    hidden = mask[:, None, None]
    output = F.scaled_dot_product_attention(query, key, value, hidden, scale=scaling)
    return output.masked_fill(~mask[:, None, :, None], 0.0)


def approximate(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None = None,
) -> Tensor:
    """Computes the choice's Nyström or clustered attention, however short the sequences are."""
    if choice.attention == "clustered":
        return clustered_attention(
            query,
            key,
            value,
            num_query_clusters=choice.num_query_clusters,
            num_key_clusters=choice.num_key_clusters,
            num_exact_keys=choice.num_exact_keys,
            mask=mask,
            scale=scaling,
        )
    return nystrom_attention(
        query,
        key,
        value,
        num_landmarks=choice.num_landmarks,
        mask=mask,
        scale=scaling,
        conv_weight=None if conv_weight is None else conv_weight.to(query),
        landmarks=landmarks_of(choice, query, key, mask),
        pinv_ridge=choice.ridge,
    )


def landmarks_of(
    choice: LayerChoice, query: Tensor, key: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Returns the landmarks (Q~, K~), each [B, H, M, D], or None for segment means, which
    `nystrom_attention` takes by itself."""
    if choice.landmarks == "segment_means":
        return None
    tokens = torch.cat([query, key], -1)  # one partition of the tokens for both
    centres, _ = kmeans(tokens, choice.num_landmarks, mask, iterations=KMEANS_STEPS)
    return centres[..., : query.shape[3]], centres[..., query.shape[3] :]


def repeated(query: Tensor, x: Tensor) -> Tensor:
    """Returns keys or values of grouped heads, repeated once for every query head."""
    groups = query.shape[1] // x.shape[1]
    return x.repeat_interleave(groups, 1) if groups > 1 else x
