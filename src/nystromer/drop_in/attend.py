"""What a converted layer computes: Nyström attention where it pays, exact attention elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.functional import nystrom_attention
from nystromer.landmarks import zero_padding


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    num_landmarks: int,
    exact_below: int,
    self_attention: bool = True,
    conv_weight: Tensor | None = None,
) -> Tensor:
    """Returns Nyström attention for sequences of `exact_below` real tokens or more, and exact
    attention for the others: [B, H, Nq, Dv], zero in the rows of padding.

    The rule is per sequence, so batching changes nothing. Of queries and keys the fewer count.
    Nothing branches on the mask while torch.compile or torch.export look on.

    Args:
        query, key, value: [B, H, Nq, D], [B, H, Nk, D], [B, H, Nk, Dv].
        mask: Real tokens among the keys, bool [B, Nk]; None means all.
        num_landmarks: M.
        exact_below: At least 1.
        self_attention: Whether the mask is the queries' too; if not all queries are real.
        conv_weight: [H, K] or None.
    """

    def near() -> Tensor:
        queries = (
            mask
            if self_attention or mask is None
            else mask.new_ones(query.shape[0], query.shape[2])
        )
        return nystrom_attention(
            query,
            key,
            value,
            num_landmarks=num_landmarks,
            mask=mask,
            query_mask=queries,
            conv_weight=conv_weight,
        )

    def exact() -> Tensor:
        return _exact_of_first(exact_below - 1, query, key, value, mask, self_attention)

    def only_exact() -> Tensor:
        # every parameter gets a gradient: DistributedDataParallel stops at one that has none
        return exact() if conv_weight is None else exact() + 0.0 * conv_weight.sum().to(value.dtype)

    n = min(query.shape[2], key.shape[2])
    if n < exact_below:
        return only_exact()
    if mask is None:
        return near()
    long = mask.sum(1) >= exact_below  # [B]
    if not torch.compiler.is_compiling():
        if long.all():
            return near()
        if not long.any():
            return only_exact()
    return torch.where(long[:, None, None, None], near(), exact())


def _exact_of_first(
    count: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    self_attention: bool,
) -> Tensor:
    """Returns exact attention over the first `count` real tokens of each sequence, [B, H, Nq, Dv]:
    a short sequence in a long batch costs its own length squared."""
    n = query.shape[2]
    if mask is None or key.shape[2] <= count or n <= count:
        return _exact(query, key, value, mask, self_attention)
    first = mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    at = first[:, None, :, None]  # [B, 1, count, 1]
    key, value = key.take_along_dim(at, 2), value.take_along_dim(at, 2)
    mask = mask.gather(1, first)
    if not self_attention:
        return _exact(query, key, value, mask, self_attention)
    part = _exact(query.take_along_dim(at, 2), key, value, mask, self_attention)
    return part.new_zeros(*part.shape[:2], n, part.shape[3]).scatter(2, at.expand_as(part), part)


def _exact(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, self_attention: bool
) -> Tensor:
    """Returns softmax attention [B, H, Nq, Dv]; whatever stands in padding touches nothing."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    query_mask = mask if self_attention else None
    query, key = zero_padding(query, query_mask), zero_padding(key, mask)
    seen = mask | ~mask.any(1, keepdim=True)  # some kernels make NaN of no key at all
    output = F.scaled_dot_product_attention(
        query, key, zero_padding(value, mask), seen[:, None, None]
    )
    return zero_padding(output, query_mask)
