"""Exact attention for the short sequences of a batch, another attention for the long ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nystromer.exact_attention import exact, packed_exact
from nystromer.functional import nystrom_attention
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
