"""Computes the attention that a `LayerChoice` stands for, from queries, keys and values.

Shapes: query [B, H, N, D], key [B, H, N, D], value [B, H, N, Dv]; mask bool [B, N].
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.clustered.attention import clustered_attention
from nystromer.exact_attention import exact
from nystromer.functional import nystrom_attention
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.landmarks import kmeans
from nystromer.short_sequences import exact_below

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

    def by_length(q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None) -> Tensor:
        def near(mask: Tensor | None, _: Tensor | None) -> Tensor:
            return approximate(choice, q, k, v, mask, scaling, taps)

        return exact_below(choice.exact_below, near, q, k, v, mask, scale=scaling)

    if not choice.exact_heads:
        return by_length(query, key, value, conv_weight)
    kept = list(choice.exact_heads)
    others = [h for h in range(query.shape[1]) if h not in kept]
    q, k, v = (x[:, kept] for x in (query, key, value))
    parts = [exact(q, k, v, mask, scale=scaling)]
    if others:
        q, k, v = (x[:, others] for x in (query, key, value))
        parts.append(by_length(q, k, v, None if conv_weight is None else conv_weight[others]))
    order = [(kept + others).index(head) for head in range(query.shape[1])]
    return torch.cat(parts, 1)[:, order]


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
