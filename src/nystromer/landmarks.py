"""Landmarks: a few vectors that stand for the queries or keys of a sequence (eq. 16).

Shapes: B sequences, H heads, N tokens, L of them real, D features, M landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.checks import check_mask, check_positive, check_tensor
from nystromer.precision import accumulation_dtype

MEANS_BLOCK = 2048  # tokens converted to float32 at a time
KMEANS_BLOCK = 4096  # tokens compared with all centres at a time, so that no N x M table is kept


def segment_means(
    x: Tensor, num_landmarks: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Mean of x over M contiguous segments of each sequence's real tokens: landmarks, eq. 16.

    With L real tokens and s = L // M, the first (s + 1) M - L segments hold s tokens and the others
    s + 1, so L need not be divisible by M. Cost: one read of x.

    Args:
        x: Queries or keys, [B, H, N, D].
        num_landmarks: M, at least 1.
        mask: Real tokens, bool [B, N]; None means all.

    Returns:
        Landmarks [B, H, M, D] in float32 (float64 for float64 x), and their token counts [B, M],
        int64. A segment without tokens (L < M) is zero.

    Raises:
        ValueError: If x is not [B, H, N, D], mask is not bool [B, N], or num_landmarks is below 1.

    Source: Xiong et al. 2021, arXiv:2102.03902, eq. 16 (whose bounds say m where l is meant).
    """
    _check(x, num_landmarks, mask)
    batch, _, n, _ = x.shape
    if mask is None:
        counts = torch.tensor(segment_sizes(n, num_landmarks), device=x.device)
        return means_of_run(x, num_landmarks), counts.expand(batch, -1)
    return _means_by_id(x, segment_ids(mask, num_landmarks), num_landmarks)


def sample_tokens(
    x: Tensor, num_landmarks: int, mask: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """One real token drawn from each of M segments: the classical Nyström sub-selection.

    The draw depends on the seed and on the number of real tokens alone, so queries and keys of one
    sequence give the same positions, and neither padding nor the rest of the batch changes them.

    Args:
        x: Queries or keys, [B, H, N, D].
        num_landmarks: M, at least 1.
        mask: Real tokens, bool [B, N]; None means all.
        seed: Of the draw.

    Returns:
        Landmarks [B, H, M, D] in float32 (float64 for float64 x), and their token counts [B, M],
        int64: 1, or 0 where L < M leaves a segment empty.

    Raises:
        ValueError: As `segment_means`.
    """
    _check(x, num_landmarks, mask)
    if mask is None:
        mask = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    if x.shape[2] == 0:
        return segment_means(x, num_landmarks, mask)
    ids = segment_ids(mask, num_landmarks)  # [B, N]
    sizes = _counts(ids, num_landmarks)  # [B, M]
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(num_landmarks, generator=generator, dtype=torch.float32, device="cpu")
    draw = draw.to(x.device)
    rank = sizes.cumsum(1) - sizes + (draw * sizes).long().clamp(max=(sizes - 1).clamp(min=0))
    real_first = mask.long().argsort(dim=1, descending=True, stable=True)  # positions by rank
    positions = real_first.gather(1, rank.clamp(max=x.shape[2] - 1))  # [B, M]
    filled = sizes > 0
    index = positions[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    tokens = x.gather(2, index).to(accumulation_dtype(x.dtype))
    return tokens.masked_fill(~filled[:, None, :, None], 0.0), filled.long()


def kmeans(
    x: Tensor, num_landmarks: int, mask: Tensor | None = None, *, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """Centres of M clusters of each head's real tokens (Lloyd's algorithm from the segment means).

    Nothing is random. Gradients flow through the last means; the assignments are constants. Cost:
    one N x M x D product a step, 4,096 tokens at a time.

    Args:
        x: Queries or keys, [B, H, N, D].
        num_landmarks: M, at least 1.
        mask: Real tokens, bool [B, N]; None means all.
        iterations: Lloyd steps, at least 1.

    Returns:
        Centres [B, H, M, D] in float32 (float64 for float64 x), and the counts [B, H, M], int64, of
        the tokens that each is the mean of (0: an empty cluster, which keeps its last centre).

    Raises:
        ValueError: As `segment_means`, or if iterations is below 1.
    """
    check_positive("iterations", iterations)
    start, counts = segment_means(x, num_landmarks, mask)
    x = zero_padding(x, mask).to(accumulation_dtype(x.dtype))
    centres, empty = start.detach(), (counts == 0)[:, None, :].expand(start.shape[:3])
    for step in range(iterations):
        ids = _nearest(x.detach(), centres, empty)  # [B, H, N]
        if mask is not None:
            ids = ids.masked_fill(~mask[:, None, :], num_landmarks)
        means, sizes = _means_by_id(x if step == iterations - 1 else x.detach(), ids, num_landmarks)
        centres = torch.where((sizes > 0)[..., None], means, centres)
    return centres, sizes


# What the backends share with the schemes above.


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, H, N, D] with zeros where mask [B, N] is False: padding may hold anything, NaN too."""
    return x if mask is None else x.masked_fill(~mask[:, None, :, None], 0.0)


def segment_sizes(length: int, num_landmarks: int) -> list[int]:
    """Tokens in each of M segments of L: the first (s + 1) M - L hold s, the others s + 1."""
    size = length // num_landmarks
    short = (size + 1) * num_landmarks - length
    return [size] * short + [size + 1] * (num_landmarks - short)


def segment_ids(mask: Tensor, num_landmarks: int) -> Tensor:
    """The segment of every token, int64 [B, N]; M at padding. mask: bool [B, N]."""
    rank = mask.cumsum(1) - 1  # of a real token among the real tokens
    length = mask.sum(1, keepdim=True)
    size = length // num_landmarks
    short = (size + 1) * num_landmarks - length
    ids = torch.where(
        rank < short * size,
        rank // size.clamp(min=1),
        short + (rank - short * size) // (size + 1),
    )
    return ids.masked_fill(~mask, num_landmarks)


def means_of_run(x: Tensor, num_landmarks: int) -> Tensor:
    """Segment means of a sequence without padding. x: [..., L, D]; returns [..., M, D]."""
    length = x.shape[-2]
    size = length // num_landmarks
    short = (size + 1) * num_landmarks - length
    longs = _means(x[..., short * size :, :].unflatten(-2, (num_landmarks - short, size + 1)))
    if size == 0:
        shorts = longs.new_zeros(*x.shape[:-2], short, x.shape[-1])
    else:
        shorts = _means(x[..., : short * size, :].unflatten(-2, (short, size)))
    return torch.cat([shorts, longs], -2)


def _means(segments: Tensor) -> Tensor:
    """Means over [..., M, s, D] -> [..., M, D] in the accumulation dtype.

    Half precision is converted a few segments at a time, in one piece of memory: torch's own mean
    over it is six times slower than over float32, and fresh memory costs more than both.
    """
    dtype = accumulation_dtype(segments.dtype)
    if segments.dtype == dtype or segments.numel() == 0:
        return segments.mean(-2, dtype=dtype)
    parts = segments.split(max(1, MEANS_BLOCK // max(1, segments.shape[-2])), -3)
    buffer = segments.new_empty(parts[0].shape, dtype=dtype)
    means = [buffer[..., : part.shape[-3], :, :].copy_(part).mean(-2) for part in parts]
    return torch.cat(means, -2)


def spread_over_run_(x: Tensor, grad_means: Tensor) -> None:
    """Adds to every token its share of its segment's gradient: `means_of_run` backward, in place.

    x: [..., L, D], contiguous in its features; grad_means: [..., M, D].
    """
    length, num_landmarks = x.shape[-2], grad_means.shape[-2]
    size = length // num_landmarks
    short = (size + 1) * num_landmarks - length
    for part, grad, count in (
        (x[..., : short * size, :], grad_means[..., :short, :], size),
        (x[..., short * size :, :], grad_means[..., short:, :], size + 1),
    ):
        if part.shape[-2]:
            share = (grad / count).to(x.dtype)[..., None, :]
            part.unflatten(-2, (grad.shape[-2], count)).add_(share)


def _means_by_id(x: Tensor, ids: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor]:
    """Means of x [B, H, N, D] over the tokens of each id, [B, N] or [B, H, N]; id M is dropped."""
    counts = _counts(ids, num_landmarks)  # [B, M] or [B, H, M]
    if ids.dim() == 2:
        ids = ids[:, None]
    dtype = accumulation_dtype(x.dtype)
    sums = x.new_zeros(*x.shape[:2], num_landmarks + 1, x.shape[3], dtype=dtype)
    sums = sums.scatter_add(2, ids[..., None].expand(x.shape), x.to(dtype))[:, :, :-1]
    divisor = counts if counts.dim() == 3 else counts[:, None]
    return sums / divisor.clamp(min=1)[..., None], counts


def _counts(ids: Tensor, num_landmarks: int) -> Tensor:
    counts = ids.new_zeros(*ids.shape[:-1], num_landmarks + 1)
    return counts.scatter_add(-1, ids, torch.ones_like(ids))[..., :-1]


def _nearest(x: Tensor, centres: Tensor, empty: Tensor) -> Tensor:
    """The nearest centre of every token, [B, H, N]; |x - c|² without its constant |x|²."""
    norms = (centres * centres).sum(-1).masked_fill(empty, torch.inf)[..., None, :]  # [B, H, 1, M]
    symbolic = isinstance(x.shape[2], torch.SymInt)  # a graph for any length knows no blocks
    parts = [x] if symbolic else x.split(KMEANS_BLOCK, 2)
    blocks = [norms - 2 * part @ centres.mT for part in parts]
    return torch.cat([block.argmin(-1) for block in blocks], 2)


def _check(x: Tensor, num_landmarks: int, mask: Tensor | None) -> None:
    check_tensor("x", x)
    if x.dim() != 4:
        raise ValueError(f"`x` must be [B, H, N, D], got shape {tuple(x.shape)}.")
    check_positive("num_landmarks", num_landmarks)
    check_mask("mask", mask, (x.shape[0], x.shape[2]), x.device)
