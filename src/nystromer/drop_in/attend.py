"""What a converted layer computes: Nyström attention where it pays, exact attention elsewhere."""

from __future__ import annotations

from torch import Tensor

from nystromer.functional import nystrom_attention
from nystromer.gradients import zero_gradients
from nystromer.short_sequences import exact_below as exact_for_short_ones


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

    Args:
        query, key, value: [B, H, Nq, D], [B, H, Nk, D], [B, H, Nk, Dv].
        mask: Real tokens among the keys, bool [B, Nk]; None means all.
        num_landmarks: M.
        exact_below: At least 1; see `nystromer.short_sequences`.
        self_attention: Whether the mask is the queries' too; if not all queries are real.
        conv_weight: [H, K] or None.
    """

    def nystrom(mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
        return nystrom_attention(
            query,
            key,
            value,
            num_landmarks=num_landmarks,
            mask=mask,
            query_mask=query_mask,
            conv_weight=conv_weight,
        )

    query_mask = None
    if mask is not None and not self_attention:
        query_mask = mask.new_ones(query.shape[0], query.shape[2])
    output = exact_for_short_ones(
        exact_below, nystrom, query, key, value, mask, query_mask=query_mask
    )
    return output if conv_weight is None else zero_gradients(output, [conv_weight])
