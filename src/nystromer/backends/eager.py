"""The equations as the paper writes them: the one to read. Keeps N x M tables for autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.landmarks import accumulation_dtype, segment_ids, segment_means
from nystromer.pinv import iterative_pinv


def unsupported(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    return None


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    conv_weight: Tensor | None,
    landmarks: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """softmax(s Q K~ᵀ) (softmax(s Q~ K~ᵀ)⁺ (softmax(s Q~ Kᵀ) V)) + conv(V), eq. 15, Algorithm 1.

    Padding enters nothing: it is zeroed, left out of the landmarks, and hidden from kernel_3.
    A sequence with at most M real tokens on one side gets exact attention out of the same factors
    (Lemma 2): its tokens are their own landmarks, so
      - L_k <= M: kernel_1 is the whole attention map, and its context is the values themselves;
      - L_q <= M: kernel_3 is the whole attention map, and a query's output is its landmark's row.
    """
    dtype, m = query.dtype, num_landmarks
    query, key, value = (x.to(accumulation_dtype(dtype)) for x in (query, key, value))
    query, key, value = _zeroed(query, query_mask), _zeroed(key, mask), _zeroed(value, mask)
    few_queries = _at_most(m, query, query_mask)  # [B, 1, 1, 1]
    few_keys = _at_most(m, key, mask)
    exact = few_queries | few_keys

    q_tilde, _ = segment_means(query, m, query_mask)  # eq. 16  [B, H, M, D]
    k_tilde, counts = segment_means(key, m, mask)
    if landmarks is not None:
        q_tilde = torch.where(exact, q_tilde, landmarks[0].to(q_tilde.dtype))
        k_tilde = torch.where(exact, k_tilde, landmarks[1].to(k_tilde.dtype))

    filled = (counts > 0)[:, None, None] | ~exact  # only a short sequence leaves landmarks empty
    real = None if mask is None else mask[:, None, None]
    kernel_1 = _softmax(scale * query @ k_tilde.mT, filled)  # [B, H, Nq, M]
    kernel_2 = _softmax(scale * q_tilde @ k_tilde.mT, filled)  # [B, H, M, M]
    kernel_3 = _softmax(scale * q_tilde @ key.mT, real)  # [B, H, M, Nk]

    gathered = kernel_3 @ value  # [B, H, M, Dv]
    kernel_2 = torch.where(exact, torch.eye(m, dtype=kernel_2.dtype, device=key.device), kernel_2)
    context = iterative_pinv(kernel_2, pinv_iterations, pinv_init) @ gathered
    if mask is not None or key.shape[2] <= m:
        context = torch.where(few_keys, segment_means(value, m, mask)[0], context)
    output = kernel_1 @ context  # [B, H, Nq, Dv]

    if query_mask is not mask or query.shape[2] != key.shape[2]:
        own_row = _own_landmark(query, query_mask, m).expand(output.shape)
        output = torch.where(few_queries & ~few_keys, gathered.gather(2, own_row), output)
    if conv_weight is not None:
        taps = conv_weight.to(value.dtype)[:, None, :, None]  # [H, 1, K, 1]
        padding = (conv_weight.shape[1] // 2, 0)
        output = output + F.conv2d(value, taps, padding=padding, groups=value.shape[1])
    return _zeroed(output, query_mask).to(dtype)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, None, :, None], 0.0)


def _at_most(num_landmarks: int, x: Tensor, mask: Tensor | None) -> Tensor:
    """Which sequences have at most M real tokens, bool [B, 1, 1, 1]."""
    if mask is None:
        return x.new_full((x.shape[0], 1, 1, 1), x.shape[2] <= num_landmarks, dtype=torch.bool)
    return (mask.sum(1) <= num_landmarks)[:, None, None, None]


def _own_landmark(query: Tensor, mask: Tensor | None, num_landmarks: int) -> Tensor:
    """The segment each query belongs to, [B, 1, N, 1]."""
    if mask is None:
        mask = query.new_ones(query.shape[0], query.shape[2], dtype=torch.bool)
    return segment_ids(mask, num_landmarks).clamp(max=num_landmarks - 1)[:, None, :, None]


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension where mask is True; finite where it is nowhere True."""
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)
