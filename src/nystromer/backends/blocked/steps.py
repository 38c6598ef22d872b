"""The steps of the operation by themselves, for a sequence whose parts lie in several processes."""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nystromer.backends.blocked import attention
from nystromer.backends.blocked.convolution import (
    Convolution,
    ConvolutionBackward,
    taps_gradient,
    toeplitz,
)
from nystromer.backends.blocked.operation import blocked_forward, workspace
from nystromer.backends.blocked.sequences import Sequence, Workspace, all_tokens, sequences
from nystromer.pinv import Pinv
from nystromer.precision import accumulation_dtype
from nystromer.registration import derivative_of, empty_as, operation, shapes_of


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(s Q~ Kᵀ) V of the keys at hand, [B, H, M, Dv], and log2 of its row sums
    [B, H, M, 1]: zeros and -inf where there is no key."""
    gathered = landmarks.new_zeros(*landmarks.shape[:3], value.shape[3])
    log2_mass = landmarks.new_full((*landmarks.shape[:3], 1), -torch.inf)
    for keys, work, views in _parts(mask, key, landmarks, key, value, gathered, log2_mass):
        q, k, v, to, mass = views
        sums, log2_sum = attention.gather(q * scale, k, v, keys, work)
        to.copy_(sums)
        mass.copy_(log2_sum)
    return gathered, log2_mass


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

    gathered, log2_mass: of all parts. mean: roughly that of all keys, [B, H, 1, D], in each part
    the same.
    """
    grad_landmarks = torch.zeros_like(landmarks)
    grad_key, grad_value = (empty_as(x, x.shape[3]).zero_() for x in (key, value))
    tensors = (landmarks, key, value, gathered, log2_mass, grad, mean)
    results = (grad_landmarks, grad_key, grad_value)
    for keys, work, views in _parts(mask, key, *tensors, *results):
        q, k, v, of_all, mass, g, near, to_q, to_k, to_v = views
        found = attention.gather_backward(
            q * scale, k, v, keys, of_all, mass, g, to_k, to_v, None, work, near
        )
        to_q.copy_(found * scale)
    return grad_landmarks, grad_key, grad_value


def scatter(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    in_use: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(s Q K~ᵀ) · context over the landmarks in use, bool [B, M]: [B, H, Nq, Dv]."""
    settings = (landmarks.shape[2], scale, *Pinv())  # no inverse: M keys are few
    masks = (in_use, query_mask)
    return blocked_forward(query, landmarks, context, *masks, None, None, None, *settings)[0]


@operation("blocked_convolution")
def convolution(value: Tensor, taps: Tensor, mask: Tensor | None) -> Tensor:
    """sum_t taps[h, t] · value[b, h, i + t - K // 2], [B, H, N, Dv]; padding adds nothing."""
    output = empty_as(value, value.shape[3]).zero_()
    matrix = toeplitz(taps.to(workspace(value, 0).factor_dtype))
    for tokens, work, (x, to, table) in _parts(mask, value, value, output, _of_all(matrix, value)):
        convolution = Convolution(table, x, tokens, work)
        for i, j in all_tokens(value.shape[2]).blocks(work.block):
            to[:, i:j] = convolution.block(i, j)
    return output


@operation("blocked_convolution_backward")
def convolution_backward(
    grad_output: Tensor, value: Tensor, taps: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    grad_value = empty_as(value, value.shape[3]).zero_()
    matrix = toeplitz(taps.flip(1).to(workspace(value, 0).factor_dtype))
    sums = torch.zeros_like(matrix, dtype=accumulation_dtype(value.dtype))
    tensors = (value, grad_output, grad_value, _of_all(matrix, value), _of_all(sums, value))
    for tokens, work, (x, grad, to, table, total) in _parts(mask, value, *tensors):
        reversed_taps = Convolution(table, grad, all_tokens(value.shape[2]), work)
        backward = ConvolutionBackward(reversed_taps, total)
        for i, j in tokens.blocks(work.block):
            tokens.write(to, i, j, backward.block(tokens.read(x, i, j, work, "input"), i, j))
    return grad_value, taps_gradient(sums).to(taps.dtype)


@shapes_of("blocked_convolution")
def _(value, taps, mask):  # type: ignore[no-untyped-def]
    return empty_as(value, value.shape[3])


@shapes_of("blocked_convolution_backward")
def _(grad_output, value, taps, mask):  # type: ignore[no-untyped-def]
    return empty_as(value, value.shape[3]), torch.empty_like(taps)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _derivative(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return *convolution_backward(grad_output, *ctx.saved_tensors), None


derivative_of("blocked_convolution", _derivative, _keep)


def _of_all(x: Tensor, value: Tensor) -> Tensor:
    """A view of x [H, ...] for each sequence of the batch."""
    return x.expand(value.shape[0], *x.shape)


def _parts(
    mask: Tensor | None, tokens: Tensor, *tensors: Tensor
) -> Iterator[tuple[Sequence, Workspace, tuple[Tensor, ...]]]:
    """Cuts tensors [B, H, ...] into views of some heads of one sequence that has real tokens."""
    work = workspace(tokens, tokens.shape[2])
    for b, sequence in enumerate(sequences(mask, tokens.shape[0], tokens.shape[2])):
        if sequence.length:
            for views in work.split(*(x[b] for x in tensors)):
                yield sequence, work, views
