"""Rows of the approximate attention map, without the map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nystromer.checks import (
    check_mask,
    check_pinv,
    check_positive,
    check_query_key,
    check_rows,
    softmax_scale,
)
from nystromer.landmarks import segment_means, zero_padding
from nystromer.pinv import Pinv
from nystromer.precision import accumulation_dtype, autocast_inputs, without_autocast

BLOCK = 2048  # keys whose [M, block] logits exist at a time


def nystrom_attention_rows(
    query: Tensor,
    key: Tensor,
    rows: Tensor | Sequence[int],
    *,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
    pinv_ridge: float | None = None,
) -> Tensor:
    r"""Rows of softmax(s Q K~ᵀ) · softmax(s Q~ K~ᵀ)⁺ · softmax(s Q~ Kᵀ): what a query reads.

    The rows of eq. 15 that `nystrom_attention` with the same settings multiplies V by (without the
    convolution): the class token's row over 100,000 patches is a heat map. Rows of a Nyström map
    sum to about one and may hold small negative numbers; a sequence of at most M real tokens gets
    rows of exact attention. Time O((N + R) M), memory O(R N).

    Args:
        query: Q, [B, H, Nq, D].
        key: K, [B, H, Nk, D].
        rows: Positions among the queries, [R] ints, the same for every sequence.
        num_landmarks, mask, scale, pinv_iterations, pinv_init, pinv_ridge: As `nystrom_attention`.

    Returns:
        [B, H, R, Nk], dtype of `query`; zero at padding and in the rows of padding.

    Raises:
        TypeError, ValueError: As `nystrom_attention`, or if a row is not in 0 ... Nq - 1.

    Example:
        >>> q, k = torch.randn(2, 1, 8, 10_001, 64)
        >>> nystrom_attention_rows(q, k, rows=[0], num_landmarks=256).shape
        torch.Size([1, 8, 1, 10001])
    """
    query, key = autocast_inputs(query, key)
    check_query_key(query, key)
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init, pinv_ridge)
    check_mask("mask", mask, (key.shape[0], key.shape[2]), key.device)
    rows = check_rows(rows, query.shape[2], query.device)
    query_mask = mask if query.shape[2] == key.shape[2] else None
    scale = softmax_scale(scale, query)
    if key.shape[2] == 0:
        return query.new_zeros(*query.shape[:2], len(rows), 0)
    with without_autocast(query):
        q, k = (x.to(accumulation_dtype(x.dtype)) for x in (query, key))
        q, k = zero_padding(q, query_mask), zero_padding(k, mask)
        q_rows = scale * q[:, :, rows]  # [B, H, R, D]
        exact = _exact(query, query_mask, num_landmarks) | _exact(key, mask, num_landmarks)

        q_tilde = scale * segment_means(q, num_landmarks, query_mask)[0]  # [B, H, M, D]
        k_tilde = segment_means(k, num_landmarks, mask)[0]
        kernel_1 = torch.softmax(q_rows @ k_tilde.mT, -1)  # [B, H, R, M]
        kernel_2 = torch.softmax(q_tilde @ k_tilde.mT, -1)  # [B, H, M, M]
        identity = torch.eye(num_landmarks, dtype=kernel_2.dtype, device=kernel_2.device)
        kernel_2 = torch.where(exact, identity, kernel_2)
        weights = kernel_1 @ Pinv(pinv_iterations, pinv_init, pinv_ridge).of(kernel_2)
        result = _weighted_kernel_3(weights, q_tilde, k, mask)
        if exact.any():  # Lemma 2
            result = torch.where(exact, _softmax(q_rows @ k.mT, mask), result)
        if mask is not None:
            result = result.masked_fill(~mask[:, None, None], 0.0)
        if query_mask is not None:
            result = result.masked_fill(~query_mask[:, None, rows, None], 0.0)
        return result.to(query.dtype)


def _weighted_kernel_3(
    weights: Tensor, q_tilde: Tensor, key: Tensor, mask: Tensor | None
) -> Tensor:
    """weights · softmax(Q~ Kᵀ), [B, H, R, N], with 2,048 columns of the softmax at a time."""

    def logits(i: int) -> Tensor:
        part = q_tilde @ key[:, :, i : i + BLOCK].mT
        return part if mask is None else _hidden(part, mask[:, i : i + BLOCK])

    starts = range(0, key.shape[2], BLOCK)
    log_mass = torch.stack([logits(i).logsumexp(-1) for i in starts]).logsumexp(0)  # [B, H, M]
    return torch.cat([weights @ (logits(i) - log_mass[..., None]).exp() for i in starts], -1)


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    return (logits if mask is None else _hidden(logits, mask)).softmax(-1)


def _hidden(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask[:, None, None], torch.finfo(logits.dtype).min)


def _exact(x: Tensor, mask: Tensor | None, num_landmarks: int) -> Tensor:
    """Which sequences have at most M real tokens, bool [B, 1, 1, 1]."""
    lengths = x.new_full((x.shape[0],), x.shape[2]) if mask is None else mask.sum(1)
    return (lengths <= num_landmarks)[:, None, None, None]
