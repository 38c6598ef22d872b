"""Exact softmax attention of padded sequences, and of short ones among long ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.landmarks import zero_padding


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Computes softmax attention, [B, H, Nq, Dv]; whatever stands in padding touches nothing."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if query_mask is None and query.shape[2] == key.shape[2]:
        query_mask = mask
    query, key, value = (
        zero_padding(x, real) for x, real in ((query, query_mask), (key, mask), (value, mask))
    )
    seen = mask | ~mask.any(1, keepdim=True)  # some kernels make NaN of no key at all
    output = F.scaled_dot_product_attention(query, key, value, seen[:, None, None], scale=scale)
    return zero_padding(output, query_mask)


def packed_exact(
    places: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """Computes self-attention of sequences of at most `places` real tokens, [B, H, N, Dv], after
    their real tokens were moved side by side."""
    rank = mask.cumsum(1) - 1  # of a real token among the real tokens, [B, N]
    tokens = torch.arange(mask.shape[1], device=mask.device).expand_as(rank)
    place = rank.masked_fill(~mask, places)  # the last place takes what is padding
    source = torch.zeros_like(rank[:, :1]).expand(-1, places + 1).scatter(1, place, tokens)
    source = source[:, :places]  # which token stands at each place
    filled = torch.arange(places, device=mask.device) < mask.sum(1, keepdim=True)
    q, k, v = (rows(x, source) for x in (query, key, value))
    output = exact(q, k, v, filled, filled, scale)
    return zero_padding(rows(output, rank.clamp(0, places - 1)), mask)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns x[b, :, index[b]] of every sequence: [B, H, N, D], int64 [B, S] -> [B, H, S, D]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
