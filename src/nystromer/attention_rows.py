"""Rows of the approximate attention map, without the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nystromer.checks import (
    check_pinv,
    check_positive,
    check_rows,
    softmax_scale,
)
from nystromer.landmarks import segment_means, zero_padding
from nystromer.layout import at_most_tokens, map_inputs, unbatched
from nystromer.pinv import Pinv
from nystromer.precision import accumulation_dtype, without_autocast

Table = Callable[[Tensor], Tensor]
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
    enable_gqa: bool = False,
) -> Tensor:
    r"""Rows of softmax(s Q K~ᵀ) · softmax(s Q~ K~ᵀ)⁺ · softmax(s Q~ Kᵀ): what a query reads.

    The rows of eq. 15 that `nystrom_attention` with the same settings multiplies V by (without the
    convolution): the class token's row over 100,000 patches is a heat map. Rows of a Nyström map
    sum to about one and may hold small negative numbers; a sequence of at most M real tokens gets
    rows of exact attention. Time O((N + R) M), memory O(R N).

    torch.compile and torch.export see no values: they take rows out of range that are a tensor as
    indexing does, and keep the [M, Nk] logits of all keys at a time.

    Args:
        query: Q, [B, H, Nq, D]; B and H may be left out, as in `nystrom_attention`.
        key: K, [B, H, Nk, D].
        rows: Positions among the queries, [R] ints, the same for every sequence.
        num_landmarks, mask, scale, pinv_iterations, pinv_init, pinv_ridge, enable_gqa: As
            `nystrom_attention`.

    Returns:
        [B, H, R, Nk], dtype of `query`; zero at padding and in the rows of padding.

    Raises:
        TypeError, ValueError: As `nystrom_attention`, or if a row is not in 0 ... Nq - 1.

    Example:
        >>> q, k = torch.randn(2, 1, 8, 10_001, 64)
        >>> nystrom_attention_rows(q, k, rows=[0], num_landmarks=256).shape
        torch.Size([1, 8, 1, 10001])
    """
    q, k, mask = map_inputs(query, key, mask, enable_gqa)
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init, pinv_ridge)
    rows = check_rows(rows, q.shape[2], q.device)
    pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)

    def selected(table: Table, queries: Tensor) -> Tensor:
        return table(queries[:, :, rows])

    with without_autocast(q):
        result = _rows(q, k, selected, num_landmarks, mask, softmax_scale(scale, q), pinv)
    if mask is not None and q.shape[2] == k.shape[2]:
        result = result.masked_fill(~mask[:, None, rows, None], 0.0)
    return unbatched(result, query)


def weighted_attention_rows(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    *,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
) -> Tensor:
    r"""Sums of rows of the same map: weights · kernel_1 · kernel_2⁺ · kernel_3, read left to right.

    What attention rollout multiplies layer by layer, in O((N + R) M) where the map itself takes N².

    Args:
        query: Q, [B, H, N, D].
        key: K, [B, H, N, D].
        weights: Of the rows, [B, R, N]; those of padding count as zero.
        num_landmarks, mask, scale, pinv_iterations, pinv_init: As `nystrom_attention`.

    Returns:
        [B, H, R, N], dtype of `query`; zero at padding.

    Raises:
        TypeError, ValueError: As `nystrom_attention`, or if weights have another shape.

    Example:
        >>> q, k = torch.randn(2, 1, 8, 5_000, 64)
        >>> weighted_attention_rows(q, k, torch.rand(1, 1, 5_000)).shape
        torch.Size([1, 8, 1, 5000])
    """
    q, k, mask = map_inputs(query, key, mask)
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init)
    if weights.dim() != 3 or (weights.shape[0], weights.shape[2]) != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"`weights` must be [B, R, N] with B = {q.shape[0]} and N = {q.shape[2]} rows to "
            f"weigh, got {list(weights.shape)}."
        )
    weights = weights.to(accumulation_dtype(q.dtype))[:, None]  # [B, 1, R, N]
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None], 0.0)
    pinv = Pinv(pinv_iterations, pinv_init)

    def summed(table: Table, queries: Tensor) -> Tensor:
        blocks = zip(weights.split(BLOCK, 3), queries.split(BLOCK, 2), strict=True)
        parts = (some @ table(part) for some, part in blocks)
        return sum(parts, weights.new_zeros(()))

    with without_autocast(q):
        return _rows(q, k, summed, num_landmarks, mask, softmax_scale(scale, q), pinv)


def _rows(
    query: Tensor,
    key: Tensor,
    wanted: Callable[[Table, Tensor], Tensor],
    num_landmarks: int,
    mask: Tensor | None,
    scale: float,
    pinv: Pinv,
) -> Tensor:
    """The wanted rows of a batch [B, H, N, D], [B, H, R, Nk].

    `wanted` is given queries, [B, H, N, D], and what makes a table [B, H, n, X] of any n of them,
    and returns the table's rows that are wanted, or sums of them, [B, H, R, X].
    """
    query_mask = mask if query.shape[2] == key.shape[2] else None
    if key.shape[2] == 0:
        return wanted(lambda some: some[..., :0], query)
    q, k = (x.to(accumulation_dtype(x.dtype)) for x in (query, key))
    q, k = zero_padding(q, query_mask), zero_padding(k, mask)
    m = at_most_tokens(num_landmarks, q.shape[2], k.shape[2])
    exact = _exact(query, query_mask, m) | _exact(key, mask, m)

    q_tilde = scale * _landmarks(q, m, query_mask)  # [B, H, M, D]
    k_tilde = _landmarks(k, m, mask)
    kernel_1 = wanted(lambda some: torch.softmax(scale * some @ k_tilde.mT, -1), q)  # [B, H, R, M]
    kernel_2 = torch.softmax(q_tilde @ k_tilde.mT, -1)  # [B, H, M, M]
    identity = torch.eye(m, dtype=kernel_2.dtype, device=kernel_2.device)
    kernel_2 = torch.where(exact, identity, kernel_2)
    result = _weighted_kernel_3(kernel_1 @ pinv.of(kernel_2), q_tilde, k, mask)
    if torch.compiler.is_compiling() or exact.any():  # Lemma 2
        softmax = wanted(lambda some: _softmax(scale * some @ k.mT, mask), q)
        result = torch.where(exact, softmax, result)
    if mask is not None:
        result = result.masked_fill(~mask[:, None, None], 0.0)
    return result.to(query.dtype)


def _landmarks(x: Tensor, num_landmarks: int, mask: Tensor | None) -> Tensor:
    """Segment means; by a mask where N may change, for without one its segments are fixed."""
    if mask is None and torch.compiler.is_compiling():
        mask = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    return segment_means(x, num_landmarks, mask)[0]


def _weighted_kernel_3(
    weights: Tensor, q_tilde: Tensor, key: Tensor, mask: Tensor | None
) -> Tensor:
    """weights · softmax(Q~ Kᵀ), [B, H, R, N], with 2,048 columns of the softmax at a time."""
    return weighted_columns(weights, q_tilde, key, mask, log_masses(q_tilde, key, mask))


def log_masses(q_tilde: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The logarithms of the row sums of exp(Q~ Kᵀ), [B, H, M, 1]."""
    masses = [_logits(q_tilde, key, mask, part).logsumexp(-1) for part in _blocks(key)]
    return torch.stack(masses).logsumexp(0)[..., None]


def weighted_columns(
    weights: Tensor, q_tilde: Tensor, key: Tensor, mask: Tensor | None, log_mass: Tensor
) -> Tensor:
    """weights · exp(Q~ Kᵀ - log_mass), [B, H, R, N]."""
    parts = (_logits(q_tilde, key, mask, part) for part in _blocks(key))
    return torch.cat([weights @ (logits - log_mass).exp() for logits in parts], -1)


def _blocks(key: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():
        return [slice(None)]  # of a number of keys that may change, the number of parts is unknown
    return [slice(i, i + BLOCK) for i in range(0, key.shape[2], BLOCK)]


def _logits(q_tilde: Tensor, key: Tensor, mask: Tensor | None, part: slice) -> Tensor:
    table = q_tilde @ key[:, :, part].mT
    return table if mask is None else _hidden(table, mask[:, part])


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    return (logits if mask is None else _hidden(logits, mask)).softmax(-1)


def _hidden(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask[:, None, None], torch.finfo(logits.dtype).min)


def _exact(x: Tensor, mask: Tensor | None, num_landmarks: int) -> Tensor:
    """Which sequences have at most M real tokens, bool [B, 1, 1, 1]."""
    lengths = x.new_full((x.shape[0],), x.shape[2]) if mask is None else mask.sum(1)
    return (lengths <= num_landmarks)[:, None, None, None]
