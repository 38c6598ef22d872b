"""Exact attention for the short sequences of a batch, another attention for the long ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.functional import nystrom_attention
from nystromer.landmarks import zero_padding
from nystromer.registration import is_traced


def exact_below(
    shortest: int,
    approximate: Callable[[Tensor | None, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    query_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Computes exact attention for sequences of fewer than `shortest` real tokens, `approximate`
    for the others: [B, H, Nq, Dv], zero in rows of padding.

    The rule is per sequence, so batching changes nothing. In a batch of both, each of two calls
    sees its own sequences alone, those of the other as padding, for which it takes no time; by
    Lemma 2 exact attention is Nyström attention with as many landmarks as a short sequence has
    tokens. A graph that is being traced holds both and decides nothing on a mask's values: it packs
    the short sequences into `shortest` - 1 places, so that theirs costs nothing that grows with N.

    Args:
        shortest: Real tokens, at least 1; of queries and keys the fewer count.
        approximate: From a mask and a query mask, either None, to the other attention.
        query, key, value: [B, H, Nq, D], [B, H, Nk, D], [B, H, Nk, Dv].
        mask: Real tokens among the keys, bool [B, Nk]; None means all.
        query_mask: Real tokens among the queries, bool [B, Nq]; None means `mask` where Nq = Nk,
            else all.
        scale: As `nystrom_attention`.
    """
    n_q, n_k = query.shape[2], key.shape[2]
    known = not isinstance(n_q, torch.SymInt) and not isinstance(n_k, torch.SymInt)
    if known and min(n_q, n_k) < shortest:
        return exact(query, key, value, mask, query_mask, scale)
    if shortest == 1 or (known and mask is None):
        return approximate(mask, query_mask)
    if mask is None:
        mask = torch.ones(key.shape[0], n_k, dtype=torch.bool, device=key.device)
    long = mask.sum(1, keepdim=True) >= shortest  # [B, 1]
    if not is_traced():
        if long.all():
            return approximate(mask, query_mask)
        if not long.any():
            return exact(query, key, value, mask, query_mask, scale)
    if query_mask is None and (n_q is n_k or n_q == n_k):
        query_mask = mask
    if query_mask is mask and is_traced():
        short = packed_exact(shortest - 1, query, key, value, mask & ~long, scale)
        return approximate(mask & long, mask & long) + short
    if query_mask is None:
        query_mask = mask.new_ones(query.shape[0], n_q)
    short = nystrom_attention(
        query,
        key,
        value,
        num_landmarks=shortest - 1,
        mask=mask & ~long,
        query_mask=query_mask & ~long,
        scale=scale,
    )
    return approximate(mask & long, query_mask & long) + short


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
