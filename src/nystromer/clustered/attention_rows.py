"""Computes single rows of the attention map of clustered attention, without the whole map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nystromer.checks import check_rows, softmax_scale
from nystromer.clustered.budget import Budget, check_budget, check_self_attention
from nystromer.clustered.eager import make_slots
from nystromer.clustered.tokens import rows as rows_of
from nystromer.clustered.tokens import sort
from nystromer.layout import map_inputs, unbatched
from nystromer.precision import accumulation_dtype, without_autocast


def clustered_attention_rows(
    query: Tensor,
    key: Tensor,
    rows: Tensor | Sequence[int],
    *,
    num_query_clusters: int = 64,
    num_key_clusters: int = 16,
    num_exact_keys: int = 48,
    mask: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Returns rows of the attention map: how much of every value some queries read.

    `clustered_attention` gives for such a query its row times V. Rows are not negative and sum to
    one. Time and memory are O(N (G + R)). torch.compile and torch.export take it
    without a mask, for one N.

    Args:
        query: Q, [B, H, N, D]; B and H may be left out, as in `clustered_attention`.
        key: K, [B, H, N, D].
        rows: Positions among the queries, [R] ints, the same for every sequence.
        num_query_clusters, num_key_clusters, num_exact_keys, mask, scale, enable_gqa: As
            `clustered_attention`.

    Returns:
        [B, H, R, N], dtype of `query`; zero at padding and in the rows of padding.

    Raises:
        TypeError, ValueError: As `clustered_attention`, or if a row is not in 0 ... N - 1.

    Example:
        >>> q, k = torch.randn(2, 1, 8, 2000, 64)
        >>> clustered_attention_rows(q, k, rows=[0]).shape
        torch.Size([1, 8, 1, 2000])
    """
    q, k, mask = map_inputs(query, key, mask, enable_gqa)
    check_self_attention(q, k)
    budget = Budget(num_query_clusters, num_key_clusters, num_exact_keys)
    check_budget(budget)
    rows = check_rows(rows, q.shape[2], q.device)
    with without_autocast(q):
        result = _batch(q, k, rows, mask, softmax_scale(scale, q), budget)
    return unbatched(result, query)


def _batch(
    query: Tensor, key: Tensor, rows: Tensor, mask: Tensor | None, scale: float, budget: Budget
) -> Tensor:
    """The rows of a batch [B, H, N, D], [B, H, R, N]."""
    dtype, result = query.dtype, query.new_zeros(*query.shape[:2], len(rows), key.shape[2])
    query, key = (x.to(accumulation_dtype(dtype)) for x in (query, key))
    query = scale * query
    if mask is None:
        parts = [_rows(q, k, rows, budget).to(dtype) for q, k in zip(query, key, strict=True)]
        return torch.stack(parts) if parts else result
    for b, real in enumerate(mask):
        asked = real[rows].nonzero()[:, 0]
        place = real.cumsum(0)[rows[asked]] - 1  # among the real tokens
        if len(asked):
            part = _rows(query[b, :, real], key[b, :, real], place, budget).to(dtype)
            result[b, :, asked[:, None], real.nonzero()[:, 0]] = part
    return result


def _rows(q: Tensor, k: Tensor, place: Tensor, budget: Budget) -> Tensor:
    """Returns the rows, [H, R, L], of one sequence without padding; place: which, [R]."""
    if q.shape[1] <= budget.keys:
        return torch.softmax(q[:, place] @ k.mT, -1)
    slots = make_slots(q, k, budget)
    cluster = slots.queries.places[:, place] // slots.queries.size  # [H, R]
    exact, bias = rows_of(slots.exact, cluster), rows_of(slots.bias, cluster)
    q = q[:, place]
    near = torch.einsum("hrd,hrtd->hrt", q, rows_of(sort(k, slots.keys), exact))
    far = q @ slots.k_tilde.mT + bias  # [H, R, M]
    near, far = torch.softmax(torch.cat([near, far], -1), -1).split(
        [near.shape[2], far.shape[2]], 2
    )
    within = rows_of(slots.weights.flatten(2), cluster).unflatten(2, slots.weights.shape[2:])
    by_cluster = (far[..., None] * within).flatten(2)  # in the order of the key clusters
    result = by_cluster.scatter(2, exact, near)
    return result.gather(2, slots.keys.places[:, None].expand(*result.shape[:2], -1))
