"""What a `LayerChoice` computes from queries, keys and values.

Shapes: query [B, H, N, D], key [B, H, N, D], value [B, H, N, Dv]; mask bool [B, N].
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """[B, H, N, Dv]: the choice's attention for the sequences of at least `choice.exact_below` real
    tokens, exact attention for the others. The rule is per sequence: batching changes nothing.
    Rows of padding are zero.
    `choice.exact_heads` are exact everywhere."""
    if choice.exact_heads:
        return _attend_by_head(choice, query, key, value, mask, scaling, conv_weight)

    def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, scale=scaling)
        output = F.scaled_dot_product_attention(q, k, v, mask[:, None, None], scale=scaling)
        return output.masked_fill(~mask[:, None, :, None], 0.0)  # rows of padding, as in `near`

    def near(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return approximate(choice, q, k, v, mask, scaling, conv_weight)

    if mask is None:
        return (near if query.shape[2] >= choice.exact_below else exact)(query, key, value, None)
    long = mask.sum(1) >= choice.exact_below
    if long.all():
        return near(query, key, value, mask)
    if not long.any():
        return exact(query, key, value, mask)
    output = value.new_zeros(*query.shape[:3], value.shape[3])
    rows = long.nonzero()[:, 0]
    output = output.index_copy(0, rows, near(query[rows], key[rows], value[rows], mask[rows]))
    rows = (~long).nonzero()[:, 0]
    used = mask[rows].any(0).nonzero()[:, 0]  # a short sequence costs its own length squared
    q, k, v = (x[rows][:, :, used] for x in (query, key, value))
    part = exact(q, k, v, mask[rows][:, used])
    return output.index_copy(0, rows, output[rows].index_copy(2, used, part))


def approximate(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None = None,
) -> Tensor:
    """Nyström or clustered attention, whatever the lengths."""
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
        conv_weight=None if conv_weight is None else conv_weight.to(query.dtype),
        landmarks=landmarks_of(choice, query, key, mask),
        pinv_ridge=choice.ridge,
    )


def landmarks_of(
    choice: LayerChoice, query: Tensor, key: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """(Q~, K~), each [B, H, M, D]; None for segment means, which `nystrom_attention` takes."""
    if choice.landmarks == "segment_means":
        return None
    tokens = torch.cat([query, key], -1)  # one partition of the tokens for both
    centres, _ = kmeans(tokens, choice.num_landmarks, mask, iterations=KMEANS_STEPS)
    return centres[..., : query.shape[3]], centres[..., query.shape[3] :]


def repeated(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values of grouped heads, once for every query head."""
    groups = query.shape[1] // x.shape[1]
    return x.repeat_interleave(groups, 1) if groups > 1 else x


def _attend_by_head(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None,
) -> Tensor:
    exact = list(choice.exact_heads)
    others = [h for h in range(query.shape[1]) if h not in exact]
    near = replace(choice, exact_heads=())
    hidden = None if mask is None else mask[:, None, None]
    q, k, v = (x[:, exact] for x in (query, key, value))
    parts = [F.scaled_dot_product_attention(q, k, v, hidden, scale=scaling)]
    if mask is not None:  # rows of padding are zero, as the others' are
        parts = [parts[0].masked_fill(~mask[:, None, :, None], 0.0)]
    if others:
        q, k, v = (x[:, others] for x in (query, key, value))
        taps = None if conv_weight is None else conv_weight[others]
        parts.append(attend(near, q, k, v, mask, scaling, taps))
    order = torch.tensor(exact + others, device=query.device).argsort()
    return torch.cat(parts, 1)[:, order]
