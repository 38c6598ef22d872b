"""The equations as the paper writes them: the one to read. Keeps N x M tables for autograd."""

from __future__ import annotations

from math import e, log2

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.landmarks import segment_ids, segment_means, zero_padding
from nystromer.pinv import Pinv, ridge_pinv_by_products
from nystromer.precision import accumulation_dtype
from nystromer.registration import must_be_of_torch_alone

LOG2_E = log2(e)


def unsupported(query: Tensor, key: Tensor, value: Tensor, num_landmarks: int) -> str | None:
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
    pinv: Pinv,
    conv_weight: Tensor | None,
    landmarks: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """kernel_1 · (kernel_2⁺ · (kernel_3 · V)) + conv(V): eq. 15 and 17, Algorithm 1."""
    dtype = query.dtype
    query, key, value = (x.to(accumulation_dtype(dtype)) for x in (query, key, value))
    value = zero_padding(value, mask)
    kernel_1, inverse, kernel_3 = factors(
        query,
        key,
        num_landmarks=num_landmarks,
        mask=mask,
        query_mask=query_mask,
        scale=scale,
        pinv=pinv,
        landmarks=landmarks,
    )
    output = kernel_1 @ (inverse @ (kernel_3 @ value))  # [B, H, Nq, Dv]
    if conv_weight is not None:
        output = output + convolution(value, conv_weight.to(value.dtype))
    return zero_padding(output, query_mask).to(dtype)


def convolution(value: Tensor, taps: Tensor) -> Tensor:
    """sum_t taps[h, t] · value[b, h, i + t - K // 2], [B, H, N, Dv]; taps: [H, K], odd K.

    Not torch's conv2d, whose gradient of the taps was wrong by 1 to 30 % on a CPU at some lengths,
    for K = 33 too (float32, torch 2.13, oneDNN; see docs/log.md).
    """
    n, kernel = value.shape[2], taps.shape[1]
    padded = F.pad(value, (0, 0, kernel // 2, kernel // 2))
    parts = [taps[:, t, None, None] * padded[:, :, t : t + n] for t in range(kernel)]
    return sum(parts[1:], parts[0])


def factors(
    query: Tensor,
    key: Tensor,
    *,
    num_landmarks: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
    pinv: Pinv,
    landmarks: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """kernel_1 = softmax(s Q K~ᵀ), kernel_2⁺ = softmax(s Q~ K~ᵀ)⁺, kernel_3 = softmax(s Q~ Kᵀ).

    Shapes [B, H, Nq, M], [B, H, M, M], [B, H, M, Nk]. Padding enters nothing: it is
    zeroed, left out of the landmarks, and hidden from kernel_3. query, key: float32 or float64.
    """
    m, n_q, n_k = num_landmarks, query.shape[2], key.shape[2]
    query, key = zero_padding(query, query_mask), zero_padding(key, mask)
    if landmarks is not None:
        q_tilde, k_tilde = (x.to(query.dtype) for x in landmarks)
    any_length = isinstance(n_q, torch.SymInt) or isinstance(n_k, torch.SymInt)  # a traced graph's
    if mask is None and query_mask is None and not any_length and min(n_q, n_k) > m:
        if landmarks is None:
            q_tilde, k_tilde = segment_means(query, m)[0], segment_means(key, m)[0]
        kernel_1 = torch.softmax(scale * query @ k_tilde.mT, -1)
        kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)
        kernel_3 = torch.softmax(scale * q_tilde @ key.mT, -1)
        return kernel_1, pinv.of(kernel_2), kernel_3

    # Lemma 2. Tokens are their own landmarks where a sequence has at most M of them: with few keys
    # kernel_1 is the whole attention map, with few queries kernel_3 is, and the rest selects.
    mask = mask if mask is not None else key.new_ones(key.shape[0], n_k, dtype=torch.bool)
    if query_mask is None:
        query_mask = query.new_ones(query.shape[0], n_q, dtype=torch.bool)
    few_keys, few_queries = _at_most(m, mask), _at_most(m, query_mask)  # [B, 1, 1, 1]
    exact = few_keys | few_queries
    own_q, own_k = (_own_landmark(x, m).to(query.dtype) for x in (query_mask, mask))
    if landmarks is None:
        q_tilde, k_tilde = _means(query, own_q), _means(key, own_k)
    else:
        q_tilde = torch.where(exact, own_q.mT @ query, q_tilde)
        k_tilde = torch.where(exact, own_k.mT @ key, k_tilde)
    in_use = ~few_keys | (own_k.sum(2, keepdim=True) > 0)  # [B, 1, 1, M]
    kernel_1 = _softmax(scale * query @ k_tilde.mT, in_use)
    kernel_2 = _softmax(scale * q_tilde @ k_tilde.mT, in_use)
    kernel_3 = _softmax(scale * q_tilde @ key.mT, mask[:, None, None])
    if query_mask is not mask:
        kernel_1 = torch.where(few_queries & ~few_keys, own_q, kernel_1)
    kernel_2 = torch.where(exact, torch.eye(m, dtype=query.dtype, device=query.device), kernel_2)
    kernel_3 = torch.where(few_keys, own_k.mT, kernel_3)
    if pinv.ridge is not None and must_be_of_torch_alone():
        inverse = ridge_pinv_by_products(kernel_2, pinv.ridge)
    else:
        inverse = pinv.of(kernel_2)
    return kernel_1, torch.where(exact, kernel_2, inverse), kernel_3


# The steps by themselves, for a sequence whose parts lie in several processes.


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(s Q~ Kᵀ) V of the keys at hand, [B, H, M, Dv], and log2 of its row sums
    [B, H, M, 1]; where there is no key, anything."""
    key, value = (zero_padding(x.to(landmarks.dtype), mask) for x in (key, value))
    logits = scale * landmarks @ key.mT
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], torch.finfo(logits.dtype).min)
    return torch.softmax(logits, -1) @ value, logits.logsumexp(-1, keepdim=True) * LOG2_E


def gather_backward(
    grad: Tensor,
    landmarks: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    gathered: Tensor,
    log2_mass: Tensor,
    mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of landmarks, key and value, of what was gathered from the keys of all parts.

    gathered, log2_mass: of all parts. mean: unused, for nothing is rounded.
    """
    dtype = key.dtype
    key, value = (zero_padding(x.to(landmarks.dtype), mask) for x in (key, value))
    kernel_3 = torch.exp2(scale * LOG2_E * landmarks @ key.mT - log2_mass)
    if mask is not None:
        kernel_3 = kernel_3.masked_fill(~mask[:, None, None], 0.0)
    grad_logits = kernel_3 * (grad @ value.mT - (grad * gathered).sum(-1, keepdim=True)) * scale
    grad_key, grad_value = grad_logits.mT @ landmarks, kernel_3.mT @ grad
    return grad_logits @ key, grad_key.to(dtype), grad_value.to(dtype)


def scatter(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    in_use: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(s Q K~ᵀ) · context over the landmarks in use, bool [B, M]: [B, H, Nq, Dv]."""
    logits = scale * zero_padding(query.to(landmarks.dtype), query_mask) @ landmarks.mT
    if in_use is not None:
        logits = logits.masked_fill(~in_use[:, None, None], torch.finfo(logits.dtype).min)
    return zero_padding(torch.softmax(logits, -1) @ context, query_mask).to(query.dtype)


def _at_most(num_landmarks: int, mask: Tensor) -> Tensor:
    """Returns which sequences have at most M real tokens, bool [B, 1, 1, 1]."""
    return (mask.sum(1) <= num_landmarks)[:, None, None, None]


def _own_landmark(mask: Tensor, num_landmarks: int) -> Tensor:
    """Returns each token's segment as a one-hot row, zeros at padding, [B, 1, N, M]."""
    ids = segment_ids(mask, num_landmarks)
    return (ids[..., None] == torch.arange(num_landmarks, device=ids.device))[:, None]


def _means(x: Tensor, own: Tensor) -> Tensor:
    """Returns the mean of every segment's tokens, [B, H, M, D]: eq. 16 as a product of matrices."""
    return own.mT @ x / own.sum(2).clamp(min=1)[..., None]


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Takes the softmax where mask is True; a row that is nowhere True stays finite."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)
